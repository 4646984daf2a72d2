# SPDX-License-Identifier: Apache-2.0
"""Folders as people have them, made from the same four images."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import register_declared_datasets
from maploss.data.prepare import find_data
from maploss.data.prepare.declare import declare
from maploss.data.prepare.found import purpose_of
from PIL import Image

# Boxes XYXY of images of 40 x 20 pixels: (class, box).
OBJECTS = {
    "a": [("dog", (4, 5, 14, 15)), ("cat", (0, 0, 40, 20))],
    "b": [("cat", (10, 2, 20, 12))],
    "c": [("dog", (1, 1, 11, 11))],
    "d": [("cat", (20, 10, 30, 20))],
}
CLASSES = ["cat", "dog"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(path)


def xml(name):
    rows = "".join(
        f"<object><name>{x}</name><bndbox><xmin>{b[0] + 1}</xmin><ymin>{b[1] + 1}</ymin>"
        f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for x, b in OBJECTS[name]
    )
    size = "<size><width>40</width><height>20</height></size>"
    return f"<annotation>{size}{rows}</annotation>"


def yolo(name):
    return "".join(
        f"{CLASSES.index(x)} {(b[0] + b[2]) / 80} {(b[1] + b[3]) / 40} {(b[2] - b[0]) / 40} "
        f"{(b[3] - b[1]) / 20}\n"
        for x, b in OBJECTS[name]
    )


def coco(*names):
    boxes = [(i, x, b) for i, name in enumerate(names) for x, b in OBJECTS[name]]
    annotations = [
        {
            "id": k,
            "image_id": i,
            "category_id": 1 + CLASSES.index(x),
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
        }
        for k, (i, x, b) in enumerate(boxes)
    ]
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 40, "height": 20}
        for i, name in enumerate(names)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content)


def csv(*names):
    rows = [f"{name}.png,{','.join(map(str, b))},{x}" for name in names for x, b in OBJECTS[name]]
    return "\n".join(["filename,x1,y1,x2,y2,class", *rows])


def make_voc(root):
    for name in OBJECTS:
        write_image(root / f"JPEGImages/{name}.png")
        write(root / f"Annotations/{name}.xml", xml(name))
    for split, names in {"train": "ab", "val": "c", "trainval": "abc", "test": "d"}.items():
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(names))
    write(root / "ImageSets/Main/cat_train.txt", "a 1\nb -1\n")


def make_nested_voc(root):
    make_voc(root / "VOCdevkit/VOC2007")


def make_xml_beside_images(root):
    for folder, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        for name in names:
            write_image(root / f"{folder}/{name}.png")
            write(root / f"{folder}/{name}.xml", xml(name))


def make_xml_and_lists(root):
    for name in OBJECTS:
        write_image(root / f"pictures/{name}.png")
        write(root / f"boxes/{name}.xml", xml(name))
    write(root / "train.txt", "a.png\nb.png\n")
    write(root / "val.txt", "c\n")
    write(root / "test.txt", "d\n")


def make_coco(root):
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        write(root / f"annotations/instances_{split}2017.json", coco(*names))
        write(root / f"annotations/person_keypoints_{split}2017.json", coco(*names))
        for name in names:
            write_image(root / f"{split}2017/{name}.png")


def make_roboflow_coco(root):
    for split, names in {"train": "ab", "valid": "c", "test": "d"}.items():
        write(root / f"{split}/_annotations.coco.json", coco(*names))
        for name in names:
            write_image(root / f"{split}/{name}.png")


def make_yolo(root):
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        for name in names:
            write_image(root / f"images/{split}/{name}.png")
            write(root / f"labels/{split}/{name}.txt", yolo(name))
    splits = "".join(f"{x}: images/{x}\n" for x in ("train", "val", "test"))
    write(root / "data.yaml", f"names: {CLASSES}\n{splits}")


def make_roboflow_yolo(root):
    for split, names in {"train": "ab", "valid": "c", "test": "d"}.items():
        for name in names:
            write_image(root / f"{split}/images/{name}.png")
            write(root / f"{split}/labels/{name}.txt", yolo(name))
    splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(root / "data.yaml", f"{splits}nc: 2\nnames: {CLASSES}\n")


def make_yolo_without_yaml(root):
    make_yolo(root)
    (root / "data.yaml").unlink()
    write(root / "classes.txt", "\n".join(CLASSES))


def make_csv(root):
    for name in OBJECTS:
        write_image(root / f"images/{name}.png")
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        write(root / f"{split}_labels.csv", csv(*names))


@pytest.fixture
def load():
    """Declares and loads a folder: a dictionary of records by part; forgotten afterwards."""
    declared_names = []

    def _load(path, name="found"):
        declared = declare(find_data(str(path)), name)
        register_declared_datasets(declared.entries)
        declared_names.extend(x["NAME"] for x in declared.entries)
        return declared, {x["NAME"]: DatasetCatalog.get(x["NAME"]) for x in declared.entries}

    yield _load
    for name in set(declared_names):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def contents(records):
    """Names of the images, with classes and boxes, whatever the form."""
    found = {}
    for record in records:
        name = record["file_name"].split("/")[-1].split(".")[0]
        boxes = [(CLASSES[x["category_id"]], tuple(x["bbox"])) for x in record["annotations"]]
        found[name] = sorted((x, tuple(round(v, 6) for v in b)) for x, b in boxes)
    return found


def expected(names):
    return {name: sorted(OBJECTS[name]) for name in names}


WITH_SPLITS = [
    make_voc,
    make_nested_voc,
    make_xml_beside_images,
    make_xml_and_lists,
    make_coco,
    make_roboflow_coco,
    make_yolo,
    make_roboflow_yolo,
    make_yolo_without_yaml,
    make_csv,
]


@pytest.mark.parametrize("make", WITH_SPLITS)
def test_each_form_has_the_same_images_boxes_classes_and_splits(tmp_path, load, make):
    make(tmp_path)
    declared, records = load(tmp_path)
    assert (declared.train, declared.test) == (["found_train"], ["found_val"])
    assert set(records) == {"found_train", "found_val", "found_test"}
    assert contents(records["found_train"]) == expected("ab")
    assert contents(records["found_val"]) == expected("c")
    assert contents(records["found_test"]) == expected("d")
    for name in records:
        assert MetadataCatalog.get(name).thing_classes == CLASSES
    (note,) = declared.notes
    assert "left for the end: found_test" in note


@pytest.mark.parametrize("form", ["xml", "yolo", "csv", "coco"])
def test_without_splits_one_is_made_and_that_is_said(tmp_path, load, form):
    names = [f"{x}{i}" for i in range(5) for x in OBJECTS]
    for name in names:
        OBJECTS.setdefault(name, OBJECTS[name[0]])
        write_image(tmp_path / f"{name}.png")
        if form == "xml":
            write(tmp_path / f"{name}.xml", xml(name))
        if form == "yolo":
            write(tmp_path / f"{name}.txt", yolo(name))
    if form == "csv":
        write(tmp_path / "boxes.csv", csv(*names))
    if form == "coco":
        write(tmp_path / "boxes.json", coco(*names))
    if form == "yolo":
        write(tmp_path / "classes.txt", "\n".join(CLASSES))
    declared, records = load(tmp_path)
    for name in names:
        del OBJECTS[name]
    assert (declared.train, declared.test) == (["found_train"], ["found_val"])
    assert "no split found: 80% of the images train" in declared.notes[0]
    train, val = (set(contents(records[f"found_{x}"])) for x in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert train | val == set(names)


def test_a_file_that_describes_the_data_set_can_be_named_itself(tmp_path):
    make_csv(tmp_path)
    make_yolo(tmp_path)
    assert find_data(str(tmp_path)).form == "YOLO (data.yaml)"
    assert "also found and not used: CSV table" in find_data(str(tmp_path)).notes[-1]
    (part,) = find_data(str(tmp_path / "train_labels.csv")).parts
    assert part.entry["SPLIT"] == "train_labels.csv"
    assert find_data(str(tmp_path / "data.yaml")).form == "YOLO (data.yaml)"


def test_trainval_trains_where_only_test_is_beside_it(tmp_path, load):
    make_voc(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"ImageSets/Main/{split}.txt").unlink()
    declared, records = load(tmp_path)
    assert (declared.train, declared.test) == (["found_trainval"], ["found_test"])
    assert contents(records["found_trainval"]) == expected("abc")


def test_a_yaml_whose_validation_images_are_those_of_training_has_no_split(tmp_path, load):
    make_yolo(tmp_path)
    config = f"names: {CLASSES}\ntrain: images/train\nval: images/train\n"
    write(tmp_path / "data.yaml", config)
    declared, _ = load(tmp_path)
    assert "no split found" in declared.notes[0]
    assert "val has the images of another" in find_data(str(tmp_path)).notes[0]


def test_labels_without_names_get_some_and_that_is_said(tmp_path):
    make_yolo_without_yaml(tmp_path)
    (tmp_path / "classes.txt").unlink()
    found = find_data(str(tmp_path))
    assert found.classes == ["class0", "class1"]
    assert "no names of classes found" in found.notes[0]


def test_images_without_xml_are_told(tmp_path):
    make_xml_and_lists(tmp_path)
    write_image(tmp_path / "pictures/e.png")
    assert find_data(str(tmp_path)).notes[0].endswith("1 images have no XML file and are not used")


@pytest.mark.parametrize("what", ["nothing", "images", "texts", "xml_without_images", "json"])
def test_a_folder_that_is_none_is_told_with_what_was_looked_for_and_found(tmp_path, what):
    if what == "images":
        write_image(tmp_path / "some/a.png")
    if what == "texts":
        write_image(tmp_path / "a.png")
        write(tmp_path / "a.txt", "a picture of a cat")
    if what == "xml_without_images":
        write(tmp_path / "a.xml", xml("a"))
    if what == "json":
        write(tmp_path / "a.json", '{"images": []}')
    with pytest.raises(ValueError, match=r"no data set recognised\. Looked for:") as caught:
        find_data(str(tmp_path))
    message = str(caught.value)
    for form in ("VOC:", "COCO:", "YOLO:", "CSV:"):
        assert form in message
    counts = {"nothing": "no file", "images": "1 .png; folders some", "texts": "1 .png, 1 .txt"}
    counts |= {"xml_without_images": "1 .xml", "json": "1 .json"}
    assert message.endswith(f"Found: {counts[what]}")


def test_a_path_that_is_not_there_is_told():
    with pytest.raises(FileNotFoundError, match="No such folder or file: /no/where"):
        find_data("/no/where")


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("train2017", "train"),
        ("images/valid", "val"),
        ("instances_val2017.json", "val"),
        ("trainval", "trainval"),
        ("data/test_labels.csv", "test"),
        ("restaurant", ""),
        ("tests", ""),
    ],
)
def test_the_purpose_is_a_whole_word_in_the_name(name, purpose):
    assert purpose_of(name) == purpose
