# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import register_declared_datasets
from maploss.engine import prepare_config

XML = """<annotation><size><width>40</width><height>30</height></size>
<object><name>cell</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object></annotation>"""


@pytest.fixture
def entry(tmp_path):
    """A declared data set of one image; it is gone after the test."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations/a.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\na\n")
    yield {
        "NAME": "declared_in_a_test",
        "FORMAT": "voc",
        "ROOT": str(tmp_path),
        "SPLIT": "train",
        "CLASSES": ["plate", "cell"],
    }
    if "declared_in_a_test" in DatasetCatalog:
        DatasetCatalog.remove("declared_in_a_test")
        MetadataCatalog.remove("declared_in_a_test")


def test_a_declared_folder_is_a_data_set_with_its_classes_and_its_ap(entry):
    register_declared_datasets([entry])
    (record,) = DatasetCatalog.get("declared_in_a_test")
    assert record["image_id"] == "a"
    (annotation,) = record["annotations"]
    assert annotation["category_id"] == 1
    assert annotation["difficult"] == 1
    metadata = MetadataCatalog.get("declared_in_a_test")
    assert metadata.thing_classes == ["plate", "cell"]
    assert metadata.ap_type == "area"


def test_the_split_that_is_declared_is_the_one_that_is_read(entry):
    register_declared_datasets([{**entry, "SPLIT": "val"}])
    assert len(DatasetCatalog.get("declared_in_a_test")) == 2


def test_declaring_again_as_a_second_run_in_one_process_does_is_fine(entry):
    register_declared_datasets([entry])
    register_declared_datasets([{**entry, "AP_TYPE": "voc07"}])
    assert MetadataCatalog.get("declared_in_a_test").ap_type == "voc07"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"FORMAT": "kitti"},
            ValueError,
            "'yolo' or 'csv', got.*'declared_in_a_test'",
        ),
        ({"FORMAT": "coco"}, ValueError, "expected the keys.*for FORMAT 'coco', got.*CLASSES"),
        ({"SPLIT": 5}, ValueError, "'declared_in_a_test'.*SPLIT to be a string, got 5"),
        ({"CLASSES": "cell"}, ValueError, "CLASSES.*got 'cell'"),
        ({"CLASSES": []}, ValueError, r"CLASSES.*got \[\]"),
        ({"CLASSES": ["a", "a"]}, ValueError, "CLASSES.*different"),
        ({"AP_TYPE": "ap50"}, ValueError, "AP_TYPE.*'ap50'"),
        ({"ROOT": "/no/such/folder"}, FileNotFoundError, "ROOT.*/no/such/folder"),
        ({"NAME": "voc_2007_train"}, ValueError, "'voc_2007_train'.*taken"),
        ({"MASKS": "x"}, ValueError, "expected the keys.*MASKS"),
        ({"IMAGES": 5}, ValueError, "IMAGES to be a string, got 5"),
        ({"PART": [0.8, 0.2]}, ValueError, "begin < end.*got .0.8, 0.2."),
        ({"PART": "half"}, ValueError, "PART to be .begin, end., got 'half'"),
    ],
)
def test_a_wrong_entry_is_named(entry, change, error, says):
    with pytest.raises(error, match=says):
        register_declared_datasets([{**entry, **change}])


def test_a_missing_key_a_name_twice_and_no_dictionary_are_named(entry):
    with pytest.raises(ValueError, match="declared twice"):
        register_declared_datasets([entry, entry])
    with pytest.raises(ValueError, match=r"expected dictionaries.*got 'voc'"):
        register_declared_datasets(["voc"])
    del entry["SPLIT"]
    with pytest.raises(ValueError, match=r"expected the keys.*SPLIT"):
        register_declared_datasets([entry])


@pytest.mark.parametrize(
    ("split", "images", "json_file", "folder"),
    [
        ("val2017", None, "annotations/instances_val2017.json", "val2017"),
        ("train/_annotations.coco.json", None, "train/_annotations.coco.json", "train"),
        ("x.json", None, "x.json", ""),
        ("labels/x.json", "pictures", "labels/x.json", "pictures"),
    ],
)
def test_a_json_file_of_coco_is_found_by_name_or_path(
    entry, tmp_path, split, images, json_file, folder
):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / json_file).parent.mkdir(exist_ok=True)
    (tmp_path / json_file).write_text(json.dumps(content))
    entry = {key: entry[key] for key in ("NAME", "ROOT")} | {"FORMAT": "coco", "SPLIT": split}
    if images is not None:
        entry["IMAGES"] = images
    register_declared_datasets([entry])
    (record,) = DatasetCatalog.get(entry["NAME"])
    assert os.path.normpath(record["file_name"]) == str(tmp_path / folder / "a.jpg")
    assert MetadataCatalog.get(entry["NAME"]).thing_classes == ["cell"]
    assert MetadataCatalog.get(entry["NAME"]).ap_type == "coco101"
    with pytest.raises(FileNotFoundError, match=r"instances_none\.json|folder is none"):
        register_declared_datasets([{**entry, "SPLIT": "none"}])


def test_a_config_declares_one_on_the_command_line_or_in_a_file(tiny_cfg, entry, tmp_path):
    tiny_cfg.MODEL.LOAD_PROPOSALS = False
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    names = ["DATASETS.TRAIN", f"('{entry['NAME']}',)", "DATASETS.TEST", f"('{entry['NAME']}',)"]
    tiny_cfg.merge_from_list([*names, "DATASETS.DECLARED", str([entry])])
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    read = tiny_cfg.clone()
    read.merge_from_file(str(tmp_path / "config.yaml"))
    assert read.DATASETS.DECLARED == tiny_cfg.DATASETS.DECLARED == [entry]
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")  # is there; what it holds is not looked at
    prepare_config(read, eval_only=False)
    assert len(DatasetCatalog.get(entry["NAME"])) == 1
