# SPDX-License-Identifier: Apache-2.0
"""The keys of metrics.json, and what docs/metrics.md says of them."""

import json
import re

import pytest
from detectron2.engine import default_argument_parser
from maploss.modeling.ranking_loss import FOCAL_LOSSES, RANKING_LOSSES

import train_net
from tests.tiny import REPOSITORY, arguments

ALL_OF_THE_LOSS = {
    "MODEL__MAP_LOSS__IOU_THRESHS": "coco",
    "MODEL__MAP_LOSS__BOX_REG__BOXES": "regressed",
    "MODEL__MAP_LOSS__POOLED": 0.5,
    "MODEL__MAP_LOSS__MEMORY": 2,
    "MODEL__ROI_BOX_HEAD__BBOX_REG_LOSS_WEIGHT": 1.0,
    "DATALOADER__UNREADABLE_IMAGES": "skip",
}


def explained():
    """Patterns of the keys in the first columns of the tables; <...> is any name."""
    text = (REPOSITORY / "docs/metrics.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    keys = [key for cell in cells for key in re.findall("`([^`]+)`", cell)]
    return [re.compile(re.sub("<[^>]*>", ".+", key)) for key in keys]


def written(folder, config, **keys):
    """The keys of a run of a few iterations."""
    settings = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": (), "SOLVER__WARMUP_ITERS": 0} | keys
    args = arguments(folder, "output", config=config, **settings)
    train_net.main(default_argument_parser().parse_args(args))
    lines = (folder / "output/metrics.json").read_text().splitlines()
    return {key for line in lines for key in json.loads(line)}


@pytest.mark.parametrize(
    ("config", "keys", "among"),
    [
        (
            "map",
            ALL_OF_THE_LOSS,
            {
                "loss_map_box",
                "map/minibatch_pooled_ap",
                "map_per_overlap/0.75",
                "map_per_class/a",
                "data/skipped_images",
            },
        ),
        ("map", ALL_OF_THE_LOSS | {"MODEL__MAP_LOSS__BOX_REG__GRADIENT": "none"}, {"loss_box_reg"}),
        ("softmax_box_reg", {"SOLVER__MAX_ITER": 4}, {"loss_cls", "time"}),
        ("parameterized_ap", {"MODEL__RANKING_LOSS__NAME": "ap"}, {"loss_ap", "loss_box_giou"}),
        ("faster_rcnn", {}, {"loss_rpn_loc", "rpn/num_neg_anchors"}),
        ("retinanet_parameterized_ap", {}, {"num_pos_anchors"}),
    ],
)
def test_each_key_that_a_run_writes_is_explained(tiny_data, config, keys, among):
    found = written(tiny_data, config, **keys)
    assert among <= found
    patterns = explained()
    assert [key for key in sorted(found) if not any(x.fullmatch(key) for x in patterns)] == []


def test_each_loss_of_a_ranking_is_explained():
    patterns = explained()
    names = [f"loss_{name}" for name in (*RANKING_LOSSES, *FOCAL_LOSSES)]
    assert [name for name in names if not any(x.fullmatch(name) for x in patterns)] == []


def test_each_scalar_that_the_package_names_is_explained():
    files = (REPOSITORY / "projects/MAPLoss/maploss").rglob("*.py")
    code = "\n".join(path.read_text() for path in files)
    named = set(re.findall(r'(?:put_scalar|add_scalar|_count)\(\s*f?"([^"]+)"', code))
    named |= set(re.findall(r'"(map/\w+)": ', code))
    assert {"map/minibatch_map", "search/reward", "rpn/num_pos_anchors"} <= named
    patterns = explained()
    names = [re.sub(r"{[^}]*}", "reward_mean", name) for name in sorted(named)]
    assert [name for name in names if not any(x.fullmatch(name) for x in patterns)] == []
