# SPDX-License-Identifier: Apache-2.0
import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from maploss.config import add_maploss_config
from maploss.data import MAPDatasetMapper


@pytest.fixture
def record(tmp_path):
    file_name = str(tmp_path / "image.png")
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 255
    cv2.imwrite(file_name, image)
    boxes = [[0, 0, 20, 10], [30, 5, 50, 35]]
    return {
        "file_name": file_name,
        "image_id": "image",
        "height": 40,
        "width": 60,
        "annotations": [
            {
                "bbox": b,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": k,
                "difficult": k,
                "iscrowd": 0,
            }
            for k, b in enumerate(boxes)
        ],
        "proposal_boxes": np.array([[0, 0, 20, 10], [5, 5, 5, 9], [10, 10, 70, 30]], np.float32),
        "proposal_objectness_logits": np.array([0, -1, -2], np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }


def make_mapper(is_train=True, augmentations=(), topk=100):
    return MAPDatasetMapper(
        is_train,
        augmentations=list(augmentations),
        image_format="BGR",
        num_classes=2,
        proposal_topk=topk,
    )


def test_difficult_flags_and_proposals_reach_the_model(record):
    before = copy.deepcopy(record["annotations"])
    mapped = make_mapper()(record)
    assert mapped["image"].shape == (3, 40, 60)
    assert mapped["image"].dtype == torch.uint8
    assert mapped["instances"].gt_difficult.tolist() == [0, 1]
    assert mapped["instances"].gt_classes.tolist() == [0, 1]
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 0, 20, 10], [30, 5, 50, 35]]
    proposals = mapped["proposals"]
    assert proposals.proposal_boxes.tensor.tolist() == [[0, 0, 20, 10], [10, 10, 60, 30]]
    assert proposals.objectness_logits.tolist() == [0, -2]
    assert record["annotations"] == before


def test_flip_and_resize_move_image_boxes_and_proposals_alike(record):
    mapped = make_mapper(augmentations=[T.Resize((80, 120)), T.RandomFlip(prob=1.0)])(record)
    assert mapped["image"].shape == (3, 80, 120)
    assert mapped["image"][:, :, 100:].min() == 255
    assert mapped["instances"].gt_boxes.tensor.tolist()[0] == [80, 0, 120, 20]
    assert mapped["proposals"].proposal_boxes.tensor.tolist()[0] == [80, 0, 120, 20]
    assert (mapped["height"], mapped["width"]) == (40, 60)


def test_without_images_the_same_choices_are_made_and_the_view_is_the_image(record):
    augmentations = [T.ResizeShortestEdge((30, 40, 52), 70, "choice"), T.RandomFlip()]
    mappers = [make_mapper(augmentations=augmentations) for _ in range(2)]
    mappers[1].with_image = False
    views = set()
    for seed in range(20):
        mapped = []
        for mapper in mappers:
            np.random.seed(seed)
            mapped.append(mapper(record))
        with_image, without = mapped
        view = without.pop("view")
        rendered = view.render(cv2.imread(record["file_name"])).transpose(2, 0, 1)
        assert np.array_equal(with_image.pop("image").numpy(), rendered)
        assert with_image.keys() == without.keys()
        assert str(with_image) == str(without)
        views.add(view[1:])
    assert views == {(*size, x) for size in ((30, 45), (40, 60), (47, 70)) for x in (False, True)}


def test_without_images_no_file_is_read_and_only_sizes_and_flips_can_be_followed(record):
    record["file_name"] = "nowhere.png"
    mapper = make_mapper(augmentations=[T.RandomBrightness(0.5, 2)])
    mapper.with_image = False
    with pytest.raises(ValueError, match=r"expected resizing and horizontal flips, got BlendTrans"):
        mapper(record)
    mapper = make_mapper()
    mapper.with_image = False
    assert mapper(record)["view"] == ("nowhere.png", 40, 60, False)
    del record["width"]
    with pytest.raises(ValueError, match=r"Image nowhere\.png: expected width and height"):
        mapper(record)


def test_flag_follows_its_box_when_another_is_dropped(record):
    record["annotations"][0]["bbox"] = [5, 5, 5, 9]
    assert make_mapper()(record)["instances"].gt_difficult.tolist() == [1]


def test_crowds_are_kept_as_crowds_and_as_difficult(record):
    record["annotations"][0]["iscrowd"] = 1
    record["annotations"][0]["difficult"] = 0
    instances = make_mapper()(record)["instances"]
    assert instances.gt_is_crowd.tolist()[0] == instances.gt_difficult.tolist()[0] == 1
    assert instances.gt_is_crowd.tolist()[1] == 0
    assert len(instances) == len(record["annotations"])


def test_image_without_objects_gives_empty_instances(record):
    record["annotations"] = []
    instances = make_mapper()(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_difficult.dtype == torch.int64


def test_at_test_time_there_are_no_instances_but_proposals(record):
    mapped = make_mapper(is_train=False)(record)
    assert "instances" not in mapped
    assert "annotations" not in mapped
    assert len(mapped["proposals"]) == 2


def test_only_the_best_proposals_are_kept(record):
    assert len(make_mapper(topk=1)(record)["proposals"]) == 1


def test_config_says_augmentations_number_of_proposals_and_classes(record):
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1
    cfg.INPUT.MIN_SIZE_TEST = 80
    mapped = MAPDatasetMapper(cfg, False)(record)
    assert mapped["image"].shape == (3, 80, 120)
    assert len(mapped["proposals"]) == 1
    assert MAPDatasetMapper(cfg, True).proposal_topk == cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN


def test_unreadable_and_missing_image_name_the_file(record, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "missing.jpg"):
        record["file_name"] = str(tmp_path / name)
        with pytest.raises(OSError, match=f"Cannot read image .*{name}"):
            make_mapper()(record)


def test_truncated_image_names_the_file(record):
    with open(record["file_name"], "rb") as f:
        content = f.read()
    with open(record["file_name"], "wb") as f:
        f.write(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"Cannot read image .*image\.png"):
        make_mapper()(record)


def test_class_that_the_config_has_not_is_named(record):
    record["annotations"][1]["category_id"] = 2
    with pytest.raises(ValueError, match=r"image\.png.*NUM_CLASSES = 2, got 2"):
        make_mapper()(record)


def test_missing_proposals_name_the_image(record):
    del record["proposal_boxes"]
    with pytest.raises(ValueError, match=r"No proposals for image .*image\.png"):
        make_mapper()(record)
