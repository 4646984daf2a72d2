# SPDX-License-Identifier: Apache-2.0
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import register_declared_datasets
from maploss.data.check_dataset import check_csv, check_dataset
from maploss.data.csv_boxes import load_csv, read_csv
from PIL import Image

CLASSES = ["cat", "dog"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / name)
    return tmp_path


def load(root, text):
    (root / "boxes.csv").write_text(text)
    return load_csv(str(root / "boxes.csv"), str(root / "images"), CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        "filename,xmin,ymin,xmax,ymax,class\na.png,4,5,14,15,dog\n",
        "a.png,4,5,14,15,dog\n",
        "class;image_id;x;y;width;height\ndog;a;4;5;10;10\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\nsome/where/a.png,40,20,dog,4,5,14,15\n",
        "ImageID,LabelName,XMin,XMax,YMin,YMax\na,dog,.1,.35,.25,.75\n",
        "Image Path\tX1\tY1\tX2\tY2\tClass Name\n\na.png\t4\t5\t14\t15\tdog\n",
        "file,bbox_x,bbox_y,bbox_w,bbox_h,label\na.png,4,5,10,10,dog\n",
        "file,left,top,right,bottom,label\na.png,4,5,14,15,dog\n",
    ],
)
def test_columns_are_known_by_their_heads_in_any_order(root, text):
    (record,) = load(root, text)
    assert record["file_name"].endswith("images/a.png")
    (annotation,) = record["annotations"]
    assert annotation["bbox"] == pytest.approx([4, 5, 14, 15])
    assert annotation["category_id"] == 1


def test_rows_without_a_box_are_images_without_objects(root):
    a, b = load(root, "b.png,1,2,3,4,cat\na.png,,,,,\nb.png,0,0,40,20,dog\n")
    assert (a["image_id"], len(a["annotations"])) == ("b.png", 2)
    assert b["annotations"] == []
    a, b = load(root, "file,x1,y1,x2,y2,class\nb.png\na.png,1,2,3,4,cat\n")
    assert [len(x["annotations"]) for x in (a, b)] == [0, 1]


def test_classes_are_sorted_and_numbers_by_their_value(root):
    (root / "boxes.csv").write_text("".join(f"a,1,2,3,4,{x}\n" for x in (10, 9, 2)))
    assert read_csv(str(root / "boxes.csv")).class_names() == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,x1,y1,class\na.png,1,2,cat\n", r"boxes\.csv:1: expected the heads .*got file, x1"),
        ("a.png,1,2,3,4,cat\na.png,1,2,x,4,cat\n", r"csv:2: expected four numbers .*got 1, 2, x"),
        ("a.png,1,2,3,4,cat\na.png,1,2,,4,cat\n", r"csv:2: expected four numbers"),
        ("a.png,1,2,3,4,cat\n\n,1,2,3,4,cat\n", r"csv:3: expected the name of an image, got none"),
        ("a.png,1,2,3,4,cat\na.png,1,2,3,4\n", r"csv:2: expected a class, got none"),
        ("a.png,1,2,3,4,cat\na.png,1,2,3,4,cow\n", r"csv:2: expected one of the classes.*'cow'"),
        ("file,x1,y1,x2,y2,class\n", "expected rows below the heads, got none"),
        ("", r"boxes\.csv: expected rows, got none"),
        ("c.png,1,2,3,4,cat\n", r"Image not found: .*images/c\.png"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line_with_its_number(root, text, says):
    with pytest.raises((OSError, ValueError), match=says) as caught:
        load(root, text)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_comes_up_in_a_line_each(root):
    text = "a.png,1,2,3,4,cow\nb.png,5,5,45,9,cat\nc.png,1,2,3,4,cat\nb.png,9,9,9,12,dog\n"
    (root / "boxes.csv").write_text(text)
    problems = list(check_csv(str(root / "boxes.csv"), str(root / "images"), CLASSES))
    expected = ["csv:1 (cow): unknown class", "csv:2 (cat): box reaches outside its image by 5.0"]
    expected += ["csv:4 (dog): box of zero area", "c.png: no such image"]
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem


def test_declared_parts_divide_the_images_and_share_none(root):
    for i in range(20):
        Image.new("RGB", (40, 20)).save(root / "images" / f"{i}.png")
    rows = "".join(f"{i}.png,1,2,3,4,cat\n" for i in range(20))
    (root / "boxes.csv").write_text(rows)
    entry = {"FORMAT": "csv", "ROOT": str(root), "SPLIT": "boxes.csv", "CLASSES": CLASSES}
    entry["IMAGES"] = "images"
    parts = {"csv_train": [0, 0.8], "csv_val": [0.8, 1.0]}
    register_declared_datasets([{**entry, "NAME": x, "PART": y} for x, y in parts.items()])
    train, val = ({x["image_id"] for x in DatasetCatalog.get(name)} for name in parts)
    assert (len(train), len(val)) == (16, 4)
    assert not train & val
    assert val != {f"{i}.png" for i in range(16, 20)}
    assert list(check_dataset("csv_train")) == []
    for name in parts:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
