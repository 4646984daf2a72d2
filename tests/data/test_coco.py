# SPDX-License-Identifier: Apache-2.0
import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from maploss.data.coco import load_coco, register_coco


def make_content():
    """Two images; classes whose ids are neither from 0 nor in order."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 100, "height": 80},
            {"id": 3, "file_name": "a.jpg", "width": 60, "height": 40},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 9, "bbox": [10, 10, 20, 10], "iscrowd": 1},
            {"image_id": 3, "category_id": 2, "bbox": [0, 0, 5.5, 5], "difficult": 1},
            {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "difficult": 1, "area": 7},
        ],
    }


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_records_have_classes_from_0_and_keep_crowds_and_difficult_objects(tmp_path):
    first, second = load_coco(write(tmp_path / "x.json", make_content()), "images")
    assert (first["image_id"], first["file_name"]) == (7, "images/b.jpg")
    assert (second["width"], second["height"]) == (60, 40)
    annotations = first["annotations"] + second["annotations"]
    assert [a["bbox"] for a in annotations] == [[1, 2, 4, 6], [10, 10, 30, 20], [0, 0, 5.5, 5]]
    assert all(a["bbox_mode"] == BoxMode.XYXY_ABS for a in annotations)
    assert [a["category_id"] for a in annotations] == [0, 1, 0]
    assert [a["iscrowd"] for a in annotations] == [0, 1, 0]
    assert [a["difficult"] for a in annotations] == [1, 0, 1]
    assert [a["area"] for a in annotations] == [7, 200, 27.5]


def test_flawed_boxes_are_clipped_or_dropped_with_one_counted_warning(tmp_path, caplog):
    content = make_content()
    boxes = ([50, 30, 20, 20], [5, 5, 0, 9], [70, 5, 9, 9])
    content["annotations"] = [{"image_id": 3, "category_id": 2, "bbox": b} for b in boxes]
    with caplog.at_level(logging.WARNING):
        _, record = load_coco(write(tmp_path / "x.json", content), "")
    assert [a["bbox"] for a in record["annotations"]] == [[50, 30, 60, 40]]
    assert len(caplog.records) == 1
    assert "x.json: 1 boxes reached outside" in caplog.text
    assert "2 of zero area were dropped (3)" in caplog.text


def test_registered_it_has_the_names_and_ids_that_detectron2_asks_for(tmp_path):
    name = "coco_of_a_test"
    register_coco(name, write(tmp_path / "x.json", make_content()), str(tmp_path))
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 9: 1}
    assert (metadata.ap_type, metadata.evaluator_type) == ("coco101", "coco")
    assert len(DatasetCatalog.get(name)) == 2
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def without(key, entry, field):
    content = make_content()
    del content[key][entry][field]
    return content


def changed(key, **fields):
    content = make_content()
    content[key][0].update(fields)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a dictionary, got list"),
        ({k: v for k, v in make_content().items() if k != "images"}, "a list 'images'"),
        (without("images", 1, "width"), "entry 1 of 'images' has no 'width'"),
        (without("annotations", 2, "bbox"), "entry 2 of 'annotations' has no 'bbox'"),
        (without("categories", 0, "name"), "entry 0 of 'categories' has no 'name'"),
        (make_content() | {"annotations": [5]}, "entry 0 of 'annotations' has no"),
        (make_content() | {"images": [], "annotations": []}, "lists no image"),
        (changed("images", id=3), "id '3' comes twice in 'images'"),
        (changed("categories", id=2), "id 2 comes twice in 'categories'"),
        (changed("images", width=0), r"image 7: width and height are \(0, 80\)"),
        (changed("images", width="9"), "image 7: width and height"),
        (changed("images", file_name=5), "image 7: file_name is 5"),
        (changed("annotations", image_id=8), "annotations': unknown image 8"),
        (changed("annotations", category_id=1), "annotations': unknown class 1"),
        (changed("annotations", bbox=[1, 2, 3]), r"expected bbox .* got \[1, 2, 3\]"),
        (changed("annotations", bbox=[1, 2, 3, None]), "expected bbox"),
        (changed("annotations", bbox=[1, 2, 3, float("nan")]), "expected bbox"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path, content, message):
    path = write(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=rf"x\.json: .*{message}") as error:
        load_coco(path, "")
    assert "\n" not in str(error.value)


def test_no_json_and_no_file_are_named(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"x\.json: no readable json"):
        load_coco(str(tmp_path / "x.json"), "")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        register_coco("coco_of_a_test", str(tmp_path / "none.json"), "")
