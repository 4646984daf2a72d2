# SPDX-License-Identifier: Apache-2.0
import json
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import proposal_files_for, shapes, shapes_proposal_file
from maploss.data.proposals import load_and_check, read_proposals
from maploss.data.shapes import load_shapes, make_shapes, shapes_folder
from maploss.data.shapes_render import CLASS_NAMES, DIFFICULT_SIZE, render_image


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("shapes") / "small")
    make_shapes(folder, seed=7, num_images=30)
    return folder


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    """The registered data sets with 2 and 3 images, in a cache of their own."""
    monkeypatch.setenv("MAPLOSS_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "SHAPES_SIZES", {"shapes_train": 3, "shapes_val": 2})
    return tmp_path


def pairwise_iou(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    inter = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - low).clip(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return inter / (areas[0][:, None] + areas[1] - inter)


def test_same_seed_gives_the_same_pixels_and_objects_and_another_does_not():
    image, objects = render_image((1, 2, 3))
    again, objects_again = render_image((1, 2, 3))
    other, _ = render_image((1, 2, 4))
    assert np.array_equal(image, again)
    assert objects == objects_again
    assert image.shape != other.shape or not np.array_equal(image, other)


def test_images_have_every_class_valid_boxes_and_some_difficult_objects():
    seen, flags = set(), []
    for i in range(80):
        image, objects = render_image((9, i))
        assert image.dtype == np.uint8
        assert min(image.shape[:2]) == 128
        assert 1 <= len(objects) <= 5
        for item in objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= image.shape[1]
            assert 0 <= y1 < y2 <= image.shape[0]
            if max(x2 - x1, y2 - y1) < DIFFICULT_SIZE:
                assert item.difficult
            seen.add(item.class_id)
            flags.append(item.difficult)
    assert seen == set(range(len(CLASS_NAMES)))
    assert 0.02 < np.mean(flags) < 0.2


def test_windows_cover_nearly_all_objects_that_are_not_difficult(small_set):
    records = load_and_check(load_shapes(small_set), os.path.join(small_set, "proposals.npz"))
    best, counts = [], []
    for record in records:
        boxes = [a["bbox"] for a in record["annotations"] if not a["difficult"]]
        counts.append(len(record["proposal_boxes"]))
        if boxes:
            best += pairwise_iou(np.array(boxes), record["proposal_boxes"]).max(1).tolist()
    assert np.mean(np.array(best) > 0.5) >= 0.97
    assert 100 < np.mean(counts) < 400


def test_records_carry_what_detectron2_expects(small_set):
    records = load_shapes(small_set)
    assert len(records) == 30
    for record in records[:5]:
        image = cv2.imread(record["file_name"])
        assert image.shape[:2] == (record["height"], record["width"])
        for annotation in record["annotations"]:
            assert annotation["difficult"] in (0, 1)
            assert annotation["iscrowd"] == 0


def test_data_sets_are_rendered_at_the_first_use_and_then_read(small_cache):
    assert "shapes_train" in DatasetCatalog
    assert MetadataCatalog.get("shapes_val").thing_classes == list(CLASS_NAMES)
    assert MetadataCatalog.get("shapes_val").ap_type == "area"
    assert os.listdir(small_cache) == []
    records = DatasetCatalog.get("shapes_val")
    assert len(records) == 2
    stamp = os.stat(records[0]["file_name"]).st_mtime_ns
    assert os.stat(DatasetCatalog.get("shapes_val")[0]["file_name"]).st_mtime_ns == stamp
    assert len(DatasetCatalog.get("shapes_train")) == 3


def test_training_and_validation_images_differ(small_cache):
    train, val = (
        cv2.imread(DatasetCatalog.get(f"shapes_{s}")[0]["file_name"]) for s in ("train", "val")
    )
    assert train.shape != val.shape or not np.array_equal(train, val)


def test_proposals_need_no_file_given(small_cache):
    files = proposal_files_for(["shapes_train", "shapes_val"], ())
    assert files == (shapes_proposal_file("shapes_train"), shapes_proposal_file("shapes_val"))
    assert read_proposals(files[1])["ids"] == [
        r["image_id"] for r in DatasetCatalog.get("shapes_val")
    ]


def test_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"expected one of .*, got 'shapes_test'"):
        shapes_folder("shapes_test")


def test_killed_preparation_leaves_nothing_that_counts(tmp_path, monkeypatch):
    folder = str(tmp_path / "set")
    leftover = tmp_path / "set.tmp-killed"
    leftover.mkdir()
    monkeypatch.setattr(
        shapes, "write_proposals", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        make_shapes(folder, seed=0, num_images=1)
    assert not os.path.exists(folder)
    monkeypatch.undo()
    make_shapes(folder, seed=0, num_images=1)
    assert len(load_shapes(folder)) == 1
    assert not any(".tmp-" in name for name in os.listdir(tmp_path))


def test_two_preparations_at_once_give_one_whole_data_set(tmp_path):
    folder = str(tmp_path / "set")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: make_shapes(folder, seed=0, num_images=3), range(2)))
    with open(os.path.join(folder, "annotations.json")) as f:
        assert len(json.load(f)) == 3
    assert len(os.listdir(os.path.join(folder, "images"))) == 3


def test_what_a_search_trains_and_judges_on_are_parts_of_the_training_images(small_cache):
    names = ("shapes_search_train", "shapes_search_val")
    parts = [DatasetCatalog.get(name) for name in names]
    assert parts == [DatasetCatalog.get("shapes_train"), []]  # of 3 images
    assert all(MetadataCatalog.get(name).ap_type == "area" for name in names)
    assert proposal_files_for(names, ()) == (shapes_proposal_file("shapes_train"),) * 2
    of_600 = [list(range(600))[part] for _, part in shapes.SHAPES_PARTS.values()]
    assert [len(x) for x in of_600] == [450, 150]
    assert of_600[0] + of_600[1] == list(range(600))
