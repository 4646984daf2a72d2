# SPDX-License-Identifier: Apache-2.0
"""What docs/architecture.md says of the code, and the code that it shows, run as it stands."""

import re

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from tests.modeling.test_roi_heads import make_batch
from tests.tiny import train_on

MOST_LINES = 40


@pytest.fixture
def page(root):
    return (root / "docs/architecture.md").read_text()


@pytest.fixture
def snippets(page):
    """Source by the name of the user's file; what they register is taken back."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    yield dict(blocks)
    for registry in (ROI_HEADS_REGISTRY, BACKBONE_REGISTRY):
        for name in ("HingeROIHeads", "build_one_convolution"):
            registry._obj_map.pop(name, None)
    if "my_train" in DatasetCatalog:
        DatasetCatalog.remove("my_train")
        MetadataCatalog.remove("my_train")


def test_each_file_and_function_of_the_page_exists(page, root):
    package = root / "projects/MAPLoss/maploss"
    paths = set(re.findall(r"`([\w/]+\.py)`", page)) - {"my_loss.py", "train_net.py", "config.py"}
    assert len(paths) > 20
    sources = ""
    for path in paths:
        file = root / path if (root / path).is_file() else package / path
        assert file.is_file(), path
        sources += file.read_text()
    for name in re.findall(r"^\| `(?:[A-Z]\w+\.)?(\w+)` \|", page, re.MULTILINE):
        assert f"def {name}(" in sources, name


def test_a_loss_and_a_backbone_of_ones_own_train(snippets, tiny_cfg):
    assert set(snippets) == {"my_loss.py", "my_backbone.py", "my_data.py"}
    for name, source in snippets.items():
        assert source.count("\n") <= MOST_LINES, name
        exec(compile(source, name, "exec"), {"__name__": name[:-3]})
    tiny_cfg.MODEL.ROI_HEADS.NAME = "HingeROIHeads"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_one_convolution"
    tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["conv"]
    torch.manual_seed(0)
    model, batch = build_model(tiny_cfg).train(), make_batch()
    with EventStorage():
        before = model(batch)["loss_hinge"].item()
        train_on(model, batch, learning_rate=0.01)
        assert model(batch)["loss_hinge"].item() < 0.8 * before
    with torch.no_grad():
        assert "instances" in model.eval()(batch)[0]


def test_a_data_set_of_ones_own_has_what_a_detector_reads(snippets):
    exec(snippets["my_data.py"], {})
    (record,) = DatasetCatalog.get("my_train")
    assert {"file_name", "image_id", "height", "width"} < set(record)
    assert set(record["annotations"][0]) == {"bbox", "bbox_mode", "category_id"}
    assert MetadataCatalog.get("my_train").thing_classes == ["cell"]
