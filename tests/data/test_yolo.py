# SPDX-License-Identifier: Apache-2.0
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import register_declared_datasets
from maploss.data.check_dataset import check_dataset, check_yolo
from maploss.data.images import ImageError
from maploss.data.yolo import label_file, load_yolo, read_config, read_labels, split_images
from PIL import Image

CLASSES = ["cat", "dog"]


def write_image(path, width=40, height=20, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Images a (two objects), b (empty labels) and c (none) to train, d to evaluate."""
    for name in ("train/a", "train/b", "train/c", "val/d"):
        write_image(tmp_path / f"images/{name}.png")
    for name, text in (
        ("train/a", "0 .5 .5 .5 .5\n1 .25 .25 .25 .5\n"),
        ("train/b", ""),
        ("val/d", "1 .5 .5 1 1"),
    ):
        path = tmp_path / f"labels/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = "names: {0: cat, 1: dog}\ntrain: images/train\nval: [images/val]\n"
    (tmp_path / "data.yaml").write_text(config)
    return tmp_path


def test_shares_become_pixels_and_images_without_labels_have_no_objects(root):
    a, b, c = load_yolo(str(root), "train", CLASSES)
    assert (a["image_id"], a["width"], a["height"]) == ("images/train/a.png", 40, 20)
    assert [x["bbox"] for x in a["annotations"]] == [[10, 5, 30, 15], [5, 0, 15, 10]]
    assert [x["category_id"] for x in a["annotations"]] == [0, 1]
    assert b["annotations"] == c["annotations"] == []


def test_declared_without_classes_it_has_those_of_its_yaml(root):
    entry = {"NAME": "yolo_of_a_test", "FORMAT": "yolo", "ROOT": str(root), "SPLIT": "val"}
    register_declared_datasets([entry])
    assert MetadataCatalog.get("yolo_of_a_test").thing_classes == CLASSES
    (record,) = DatasetCatalog.get("yolo_of_a_test")
    assert record["annotations"][0]["bbox"] == [0, 0, 40, 20]
    assert list(check_dataset("yolo_of_a_test")) == []
    DatasetCatalog.remove("yolo_of_a_test")
    MetadataCatalog.remove("yolo_of_a_test")


def test_the_names_may_be_a_list_and_what_is_none_is_told(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("names: [a, 7]")
    assert read_config(str(path))["names"] == ["a", "7"]
    for text in ("names: {1: a}", "names: []", "train: x", "just text", "names: ["):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"data\.yaml: (expected names|no readable yaml)"):
            read_config(str(path))


@pytest.mark.parametrize("place", ["../images/train", "images/train"])
def test_the_paths_of_roboflow_and_of_a_path_key_are_found(root, place):
    (root / "data.yaml").write_text(f"names: [cat]\npath: .\ntrain: {place}\n")
    assert len(split_images(str(root), "train")) == 3


def test_a_folder_and_a_list_are_splits_too(root):
    assert len(split_images(str(root), ".")) == 4
    assert len(split_images(str(root), "images/val")) == 1
    (root / "some.txt").write_text("images/train/c.png\n./images/val/d.png\n")
    found = split_images(str(root), "some.txt")
    assert [x[-5:] for x in found] == ["c.png", "d.png"]
    (root / "some.txt").write_text("images/train/c.png\n0 .5 .5 1 1\n")
    with pytest.raises(ValueError, match=r"some\.txt:2: expected the path of an image, got '/.*0 "):
        split_images(str(root), "some.txt")


def test_a_split_that_is_not_there_is_told(root):
    with pytest.raises(ValueError, match=r"data\.yaml: expected the key 'test', got"):
        split_images(str(root), "test")
    with pytest.raises(FileNotFoundError, match=r"images not found: .*nowhere"):
        split_images(str(root), "nowhere")


def test_labels_lie_in_place_of_the_last_folder_images_or_beside(root):
    assert label_file("/images/a/images/train/x.jpg") == "/images/a/labels/train/x.txt"
    assert label_file("/data/x.jpg") == "/data/x.txt"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 .5 .5 .5", "expected class, x, y, width, height, got '0 .5 .5 .5'"),
        ("0 .5 .5 .5 .5 .9", "expected class, x, y"),
        ("cat .5 .5 .5 .5", "expected class, x, y"),
        ("0 .5 .5 nan .5", "expected class, x, y"),
        ("2 .5 .5 .5 .5", "expected a class from 0 to 1, got 2"),
        ("0.5 .5 .5 .5 .5", "expected a class from 0 to 1, got 0.5"),
        ("0 12 7 20 10", "expected shares of the image from 0 to 1, got 12"),
        ("0 .5 -.7 .5 .5", "expected shares of the image from 0 to 1, got -0.7"),
    ],
)
def test_a_malformed_line_is_told_with_its_number(tmp_path, line, says):
    path = tmp_path / "a.txt"
    path.write_text(f"0 .5 .5 1 1\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt:2: {says}") as caught:
        read_labels(str(path), 2, (40, 20))
    assert "\n" not in str(caught.value)


def test_an_outline_becomes_the_box_around_it(tmp_path):
    (tmp_path / "a.txt").write_text("1 .1 .2 .5 .1 .3 .9")
    (item,) = read_labels(str(tmp_path / "a.txt"), 2, (100, 100))
    assert item.box == pytest.approx([10, 10, 50, 90])


def test_rounding_is_no_fault_and_more_than_half_a_pixel_is_told_with_its_amount(root, caplog):
    caplog.set_level(logging.WARNING)
    path = root / "labels/train/a.txt"
    path.write_text("0 .500010 .5 1 1\n")
    (record, *_) = load_yolo(str(root), "train", CLASSES)
    assert record["annotations"][0]["bbox"] == pytest.approx([0.0004, 0, 40, 20])
    assert not caplog.records
    assert list(check_yolo(str(root), "train", CLASSES)) == []
    path.write_text("0 .55 .5 1 1\n")
    (problem,) = check_yolo(str(root), "train", CLASSES)
    assert problem.endswith("a.txt:1 (cat): box reaches outside its image by 2.0 pixels")
    load_yolo(str(root), "train", CLASSES)
    assert "1 boxes reached outside" in caplog.text


def test_all_that_is_wrong_comes_up_in_a_line_each(root):
    (root / "labels/train/a.txt").write_text("0 .5 .5 0 .5\n")
    (root / "labels/train/b.txt").write_text("5 .5 .5 1 1\n")
    (root / "images/train/c.png").write_bytes(b"no image")
    problems = list(check_yolo(str(root), "train", CLASSES))
    assert len(problems) == 3
    assert problems[0].endswith("a.txt:1 (cat): box of zero area")
    assert "b.txt:1: expected a class from 0 to 1" in problems[1]
    assert "c.png" in problems[2]
    (root / "labels/train/b.txt").write_text("")
    with pytest.raises(ImageError, match=r"Cannot read image .*c\.png"):
        load_yolo(str(root), "train", CLASSES)


def test_an_image_that_exif_turns_has_the_size_it_is_trained_at(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images/val/e.jpg", 40, 20, exif=exif)
    _, record = load_yolo(str(root), "val", CLASSES)
    assert (record["width"], record["height"]) == (20, 40)


def test_boxes_of_bccd_survive_the_way_through_a_file(tmp_path):
    """Six decimals of a share, as YOLO's tools write them, are less than .001 pixel."""
    rng = np.random.default_rng(0)
    size = (640, 480)
    corners = np.sort(rng.uniform(0, 1, (50, 2, 2)), axis=1) * size
    lines = []
    for (x1, y1), (x2, y2) in corners:
        values = (x1 + x2) / 2 / 640, (y1 + y2) / 2 / 480, (x2 - x1) / 640, (y2 - y1) / 480
        lines.append("0 " + " ".join(f"{v:.6f}" for v in values))
    (tmp_path / "a.txt").write_text("\n".join(lines))
    boxes = [x.box for x in read_labels(str(tmp_path / "a.txt"), 1, size)]
    assert np.abs(np.array(boxes) - corners.reshape(-1, 4)).max() < 1e-3
