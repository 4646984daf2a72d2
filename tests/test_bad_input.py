# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a user's data stops train_net.py in one line, if possible before it trains."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from maploss.data.proposals import write_proposals

import train_net
from tests.tiny import REPOSITORY, arguments

XML = """<annotation><size><width>64</width><height>48</height></size><object><name>cell</name>
<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"""
WITHOUT_OBJECT = XML.split("<object>")[0] + "</annotation>"
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
    "categories": [{"id": 1, "name": "cell"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 30]}],
}


@pytest.fixture
def data(tmp_path):
    """A folder with one image, annotated both ways, and its windows."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "JPEGImages/a.jpg"), image)
    (tmp_path / "Annotations/a.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    (tmp_path / "JPEGImages/coco.json").write_text(json.dumps(COCO))
    for image_id in ("a", 1):
        windows = [[[8, 8, 40, 40], [0, 0, 20, 20], [30, 5, 60, 40]]]
        write_proposals(str(tmp_path / f"windows_{image_id}.npz"), [image_id], windows)
    yield tmp_path
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "bad" in catalog:
            catalog.remove("bad")


def train(data, style="voc", **changes):
    entry = {"NAME": "bad", "FORMAT": style, "ROOT": str(data), "SPLIT": "train"}
    entry |= {"CLASSES": ["cell"]} if style == "voc" else {"SPLIT": "JPEGImages/coco.json"}
    windows = f"('{data}/windows_{'a' if style == 'voc' else 1}.npz',)"
    keys = {
        "DATASETS.DECLARED": [entry],
        "DATASETS.TRAIN": ("bad",),
        "DATASETS.TEST": ("bad",),
        "DATASETS.PROPOSAL_FILES_TRAIN": windows,
        "DATASETS.PROPOSAL_FILES_TEST": windows,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.STEPS": (),
        **changes,
    }
    args = arguments(data, "output", config="map", **keys)
    return train_net.main(default_argument_parser().parse_args(args))


@pytest.mark.parametrize("style", ["voc", "coco"])
def test_sound_data_of_ones_own_trains_and_is_judged_without_code(data, style):
    results = train(data, style)
    assert "AP50-cell" in results["bbox"]
    assert list(results) == ["bbox", "coco"][: 1 + (style == "coco")]
    written = json.loads((data / "output/inference/ap.json").read_text())
    metrics = json.loads((data / "output/metrics.json").read_text().splitlines()[-1])
    table = (data / "output/inference/ap.txt").read_text()
    for part, values in results.items():
        for name in ("AP", "AP50", "AP75", "AP-pool", "AP50-pool"):
            assert values[name] == written[part][name] == metrics[f"{part}/{name}"]
    for column in ("AP50:95", "AP50", "AP75", "AP-pool"):
        assert column in table


def overwrite(name, content):
    return lambda data: (data / name).write_text(content)


def spoiled(content):
    return overwrite("JPEGImages/coco.json", content)


def changed(key, **fields):
    return json.dumps({**COCO, key: [{**COCO[key][0], **fields}]})


def without(key, field):
    return json.dumps({**COCO, key: [{k: v for k, v in COCO[key][0].items() if k != field}]})


@pytest.mark.parametrize(
    ("style", "spoil", "says"),
    [
        ("voc", overwrite("Annotations/a.xml", "<annotation>"), r"/Annotations/a\.xml: "),
        ("voc", overwrite("Annotations/a.xml", XML.replace("cell", "cat")), r"'cat' in .*/a\.xml"),
        ("voc", overwrite("ImageSets/Main/train.txt", "\n"), r"Empty split: .*/train\.txt"),
        ("voc", overwrite("ImageSets/Main/train.txt", "b\n"), r"/b\.xml"),
        (
            "voc",
            lambda data: write_proposals(str(data / "windows_a.npz"), ["b"], [[[0, 0, 9, 9]]]),
            r"/windows_a\.npz: no proposals for image 'a'",
        ),
        ("coco", spoiled("{"), r"/coco\.json: no readable json"),
        ("coco", spoiled("{}"), r"/coco\.json: .*'categories'"),
        ("coco", spoiled(without("images", "width")), "'width'"),
        ("coco", spoiled(without("annotations", "bbox")), "'bbox'"),
        ("coco", spoiled(json.dumps(COCO | {"images": []})), "image"),
        ("coco", spoiled(json.dumps(COCO | {"categories": []})), "category"),
        ("coco", spoiled(changed("images", id=[1])), "'id', got"),
        ("coco", spoiled(changed("categories", name=5)), "a name, got 5"),
        ("coco", spoiled(changed("categories", id=None)), "'id', got"),
        ("coco", spoiled(changed("annotations", bbox=[10**400] * 4)), "bbox"),
        ("coco", spoiled(changed("annotations", iscrowd=1)), "an object to train on"),
        ("coco", spoiled("[" * 100000), r"/coco\.json: no readable json"),
        ("voc", lambda data: (data / "JPEGImages/a.jpg").unlink(), r"Image not found: .*/a\.jpg"),
        ("voc", overwrite("Annotations/a.xml", WITHOUT_OBJECT), "an object to train on"),
        (
            "voc",
            lambda data: write_proposals(str(data / "windows_a.npz"), ["a"], [[[0, 0, np.nan, 9]]]),
            r"/windows_a\.npz: image 'a': expected finite boxes",
        ),
    ],
)
def test_what_can_be_known_before_stops_with_one_line(data, monkeypatch, style, spoil, says):
    spoil(data)
    monkeypatch.setattr(train_net.Trainer, "run_step", lambda self: pytest.fail("it started"))
    with pytest.raises(SystemExit, match=says) as stop:
        train(data, style)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert str(data) in str(stop.value) or "'bad'" in str(stop.value)


def test_data_sets_of_one_run_have_the_same_classes_in_the_same_order(data, capsys):
    entries = [
        {"NAME": name, "FORMAT": "voc", "ROOT": str(data), "SPLIT": "train", "CLASSES": classes}
        for name, classes in (("bad", ["cell", "cat"]), ("worse", ["cat", "cell"]))
    ]
    changes = {"DATASETS.DECLARED": str(entries), "DATASETS.TEST": "('worse',)"}
    with pytest.raises(SystemExit, match=r"'bad' and 'worse': expected the same classes in the sa"):
        train(data, **changes, **{"MODEL.ROI_HEADS.NUM_CLASSES": "2"})


def truncate(data):
    image = data / "JPEGImages/a.jpg"
    image.write_bytes(image.read_bytes()[:1500])


def swap_sizes(data):
    text = XML.replace("<width>", "<w>").replace("</width>", "</w>")
    text = text.replace("height>", "width>").replace("<w>", "<height>").replace("</w>", "</height>")
    (data / "Annotations/a.xml").write_text(text)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncate, r"Cannot read image .*/a\.jpg: "),
        (swap_sizes, r"Image .*/a\.jpg: .*annotated as"),
    ],
)
def test_an_image_that_cannot_be_used_stops_training_with_one_line(
    data, spoil, says, workers, caplog
):
    spoil(data)
    with pytest.raises(
        SystemExit, match=rf"^error: training stopped in iteration 0: {says}"
    ) as stop:
        train(data, **{"DATALOADER.NUM_WORKERS": workers})
    assert "\n" not in str(stop.value)
    assert "Traceback" not in caplog.text


def test_more_gpus_than_there_are_end_with_one_line():
    command = [sys.executable, str(REPOSITORY / "train_net.py"), "--num-gpus", "64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: --num-gpus 64: found \d+ GPUs", done.stderr.strip().splitlines()[-1]
    )
    assert "Traceback" not in done.stderr
