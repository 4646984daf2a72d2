# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import VOCFolders
from maploss.data.check_dataset import check_coco, check_voc

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_image(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), np.uint8))


def write_voc(root, split=("a", "b"), **objects):
    """A tree of VOC with a sound image for each name of the split; boxes by image."""
    for image_id in split:
        write_image(root / "JPEGImages" / f"{image_id}.jpg")
        rows = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
            f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
            for name, b in objects.get(image_id, [("cat", (1, 1, 9, 9))])
        )
        path = root / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(exist_ok=True)
        size = "<size><width>40</width><height>30</height></size>"
        path.write_text(f"<annotation>{size}{rows}</annotation>")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(split))
    return str(root)


def test_nothing_is_wrong_with_a_sound_data_set(tmp_path):
    assert list(check_voc(VOCFolders(write_voc(tmp_path)), "train", ["cat"])) == []


def test_all_that_is_wrong_in_vocs_layout_comes_up(tmp_path):
    boxes = [("cat", (5, 5, 5, 9)), ("cow", (1, 1, 9, 9)), ("cat", (50, 1, 60, 9))]
    boxes.append(("cat", (1, 1, 41, 9)))
    root = write_voc(tmp_path, ("a", "b", "c", "d", "e", "a"), a=boxes)
    image = tmp_path / "JPEGImages/b.jpg"
    image.write_bytes(image.read_bytes()[:300])
    (tmp_path / "JPEGImages/c.jpg").unlink()
    (tmp_path / "Annotations/d.xml").write_text("<annotation>")
    write_image(tmp_path / "JPEGImages/e.jpg", width=30, height=40)
    (tmp_path / "Annotations/alone.xml").write_text("")
    problems = list(check_voc(VOCFolders(root), "train", ["cat"]))
    expected = [
        "split 'train': image 'a' is listed twice",
        "alone.xml: no image",
        "c.xml: no image",
        "a.xml: object 1 (cat): box of zero area",
        "a.xml: object 2 (cow): unknown class",
        "a.xml: object 3 (cat): box outside its image",
        "a.xml: object 4 (cat): box reaches outside its image by 1.0 pixels",
        "Cannot read image",
        "c.jpg: no such image",
        "d.xml",
        "e.jpg: 30 x 40 pixels, annotated as 40 x 30",
    ]
    assert len(problems) == len(expected), problems
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem
        assert "\n" not in problem


def test_all_that_is_wrong_in_cocos_form_comes_up(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "width": 40, "height": 30}
            for i, name in enumerate("abc")
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 5]},
            {"image_id": 0, "category_id": 1, "bbox": [1, 1, 40, 5]},
            {"image_id": 0, "category_id": 1, "bbox": [1, 1, 4, 5]},
        ],
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    problems = list(check_coco(str(path), str(tmp_path)))
    assert len(problems) == 4
    assert "entry 0 of 'annotations' (image a.jpg): box of zero area" in problems[0]
    assert "entry 1 of 'annotations' (image a.jpg): box reaches outside" in problems[1]
    assert "Cannot read image" in problems[2]
    assert "c.jpg: no such image" in problems[3]
    del content["annotations"][0]["bbox"], content["images"][2]["id"]
    path.write_text(json.dumps(content))
    assert len(list(check_coco(str(path), str(tmp_path)))) == 2


def test_the_tool_lists_problems_and_its_exit_status_tells(tmp_path, call_tool):
    root = write_voc(tmp_path, a=[("cat", (5, 5, 5, 9))])
    entry = {"NAME": "x", "FORMAT": "voc", "ROOT": root, "SPLIT": "train", "CLASSES": ["cat"]}
    declared = ["DATASETS.DECLARED", str([entry])]
    status, output, _ = call_tool("check_dataset", "x", *declared)
    assert status == 1
    lines = output.splitlines()
    assert lines[0].endswith("a.xml: object 1 (cat): box of zero area")
    assert lines[1:] == ["x: 1 problems"]
    status, _, errors = call_tool("check_dataset", "y", *declared)
    assert status == 1
    assert errors.startswith("error: No data set 'y'")
    assert errors.count("\n") == 1
    DatasetCatalog.remove("x")
    MetadataCatalog.remove("x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not beside the checkout")
def test_the_two_boxes_of_zero_area_of_bccd_come_up():
    problems = list(
        check_voc(VOCFolders(str(SHARED / "bccd")), "trainval", ["RBC", "WBC", "Platelets"])
    )
    assert [Path(x.split(": ")[0]).stem for x in problems] == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert all(x.endswith("(RBC): box of zero area") for x in problems)
