# SPDX-License-Identifier: Apache-2.0
"""Exported detectors in a process of their own, with Detectron2's DefaultPredictor."""

import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from maploss.engine import load_config
from maploss.export import export_model
from maploss.modeling import SelectiveSearchProposals

# What a user without this repository's tools would write.
SCRIPT = """
import sys, json, cv2, maploss
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
cfg = get_cfg()
maploss.add_maploss_config(cfg)
cfg.merge_from_file(sys.argv[1])
found = DefaultPredictor(cfg)(cv2.imread(sys.argv[2]))["instances"]
rows = [found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()]
print(json.dumps(rows))
"""


@pytest.fixture
def image(tmp_path):
    pixels = np.full((60, 80, 3), 200, np.uint8)
    cv2.circle(pixels, (30, 30), 15, (20, 20, 220), -1)
    cv2.rectangle(pixels, (50, 20), (70, 50), (220, 60, 20), -1)
    cv2.imwrite(str(tmp_path / "image.png"), pixels)
    return tmp_path / "image.png"


def make(cfg, weight, seed=1):
    cfg.INPUT.MIN_SIZE_TEST = 60
    cfg.MODEL.ROI_HEADS.NAME = "SoftmaxROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = weight
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(1000)  # so that scores differ
        if weight:
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(1000)
    return model


def run_fresh(config, image):
    script = [sys.executable, "-c", SCRIPT, str(config), str(image)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    return [np.array(x) for x in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_plain_predictor_in_a_fresh_process_detects_the_same(tiny_cfg, tmp_path, image, weight):
    model = make(tiny_cfg, weight)
    path = export_model(tiny_cfg, model, tmp_path / "exported", "tiny")
    boxes, scores, classes = run_fresh(path.with_suffix(".yaml"), image)
    assert len(boxes) > 8
    # The model in memory, on the windows that the exported one makes.
    cfg = load_config(str(path.with_suffix(".yaml")), [])
    predictor = DefaultPredictor(cfg)
    model.proposal_generator = predictor.model.proposal_generator
    predictor.model = model
    expected = predictor(cv2.imread(str(image)))["instances"]
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert classes.tolist() == expected.pred_classes.tolist()


def test_folding_changes_no_detection(tiny_cfg, tmp_path, image):
    model = make(tiny_cfg, 1.0)
    regressor = model.roi_heads.box_predictor.bbox_pred
    features, windows = torch.randn(5, 8), torch.tensor([[4.0, 4, 30, 40]]).repeat(5, 1)
    before = regressor.boxes(regressor(features), windows)
    export_model(tiny_cfg, model, tmp_path)
    assert (regressor.target_std == 1).all()
    torch.testing.assert_close(regressor.boxes(regressor(features), windows), before)


def test_the_checkpoint_has_its_own_digest_in_its_name_and_no_optimizer(tiny_cfg, tmp_path):
    path = export_model(tiny_cfg, make(tiny_cfg, 0.0), tmp_path, "tiny")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"tiny_{digest[:8]}.pth"
    content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "metadata"}
    assert len(content["metadata"]["thing_classes"]) == 4
    assert sorted(x.suffix for x in tmp_path.iterdir()) == [".pth", ".yaml"]


@pytest.fixture
def exported(tiny_cfg, tmp_path, call_tool):
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    torch.save({"model": make(tiny_cfg, 0.0).state_dict()}, tiny_cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    arguments = ("--config-file", str(tmp_path / "config.yaml"), "--ranks", "8", "0")
    call_tool("export_model", *arguments, "--output", str(tmp_path / "exported"))
    (config,) = (tmp_path / "exported").glob("*.yaml")
    return config


def test_the_demo_takes_an_exported_and_compressed_detector(exported, tmp_path, image, call_tool):
    output = tmp_path / "detected"
    _, out, _ = call_tool(
        "demo", "--config-file", str(exported), "--output", str(output), "--top", "3", str(image)
    )
    assert "1 images" in out
    (found,) = json.loads((output / "detections.json").read_text())
    assert found["file"] == str(image)
    assert len(found["detections"]) == 3
    best = found["detections"][0]
    assert best["class"] in load_config(str(exported), []).MODEL.CLASS_NAMES
    assert best["score"] >= found["detections"][1]["score"]
    picture = cv2.imread(str(output / "image.jpg"))
    assert picture.shape == (60, 80, 3)
    blue, _, red = picture[30, 30].tolist()  # in the red circle
    assert red > blue + 50
    boxes, scores, _ = run_fresh(exported, image)
    np.testing.assert_allclose(best["box"], boxes[0], atol=0.051)
    np.testing.assert_allclose(best["score"], scores[0], atol=1e-5)


def test_the_demo_does_not_replace_its_images(exported, tmp_path, image, call_tool):
    jpg = tmp_path / "picture.jpg"
    cv2.imwrite(str(jpg), cv2.imread(str(image)))
    arguments = ("--config-file", str(exported), "--output", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: --output .* would replace"):
        call_tool("demo", *arguments, str(jpg))


def test_the_demo_tells_an_image_that_cannot_be_read(exported, tmp_path, call_tool):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SystemExit, match=r"^error: Cannot read image .*broken\.jpg: "):
        call_tool(
            "demo",
            *("--config-file", str(exported), "--output", str(tmp_path / "out")),
            str(tmp_path / "broken.jpg"),
        )


def test_the_demo_needs_a_detector_that_makes_its_own_windows(exported, tmp_path, image, call_tool):
    config = str(tmp_path / "config.yaml")
    with pytest.raises(SystemExit, match=r"^error: .*config\.yaml: .*tools/export_model\.py"):
        call_tool("demo", "--config-file", config, "--output", str(tmp_path), str(image))


def test_windows_do_not_depend_on_the_order_of_the_channels(tiny_cfg, image):
    found = []
    pixels = torch.from_numpy(cv2.imread(str(image))).permute(2, 0, 1).float()
    for image_format, x in (("BGR", pixels), ("RGB", pixels.flip(0))):
        generator = SelectiveSearchProposals(
            pixel_mean=[10.0] * 3, pixel_std=[2.0] * 3, image_format=image_format, max_proposals=50
        ).eval()
        images = ImageList.from_tensors([(x - 10) / 2])
        (windows,), _ = generator(images, {})
        found.append(windows.proposal_boxes.tensor)
    assert len(found[0]) > 3
    assert torch.equal(*found)


def test_the_demo_takes_weights_that_fit_only_and_finds_them_beside_a_moved_config(
    exported, tmp_path, image, call_tool
):
    moved = tmp_path / "moved"
    exported.parent.rename(moved)
    config = str(moved / exported.name)
    arguments = ("--config-file", config, "--output", str(tmp_path / "out"), str(image))
    _, out, _ = call_tool("demo", *arguments)
    assert "1 images" in out
    with pytest.raises(SystemExit, match=r"^error: .*weights do not fit the config"):
        call_tool("demo", *arguments, "--opts", "MODEL.ROI_BOX_HEAD.FC_DIM", "12")


def test_windows_are_made_at_test_only(tiny_cfg, tmp_path, storage):
    path = export_model(tiny_cfg, make(tiny_cfg, 0.0), tmp_path)
    cfg = load_config(str(path.with_suffix(".yaml")), [])
    generator = build_model(cfg).proposal_generator
    with pytest.raises(RuntimeError, match="expected a test"):
        generator(None, {})
