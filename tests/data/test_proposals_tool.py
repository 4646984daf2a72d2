# SPDX-License-Identifier: Apache-2.0
"""tools/proposals.py as a user calls it."""

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

XML = """<annotation><size><width>80</width><height>60</height></size>
<object><name>cell</name><bndbox><xmin>21</xmin><ymin>19</ymin><xmax>41</xmax><ymax>43</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def run(tmp_path, monkeypatch, call_tool):
    """Calls the tool on a declared data set of two images, "cells": its status, output, errors."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "ab":
        image = np.full((60, 80, 3), 200, np.uint8)
        cv2.rectangle(image, (20, 18), (40, 42), (0, 0, 200), -1)
        cv2.imwrite(str(tmp_path / f"JPEGImages/{name}.jpg"), image)
        (tmp_path / f"Annotations/{name}.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Main/one.txt").write_text("a\n")

    def _run(*args, split="train"):
        entry = {"NAME": "cells", "FORMAT": "voc", "ROOT": str(tmp_path), "SPLIT": split}
        declared = ["DATASETS.DECLARED", str([{**entry, "CLASSES": ["cell"]}])]
        monkeypatch.chdir(tmp_path)
        return call_tool("proposals", *args, *declared)

    yield _run
    if "cells" in DatasetCatalog:
        DatasetCatalog.remove("cells")
        MetadataCatalog.remove("cells")


def test_made_windows_cover_all_images_and_find_the_objects(run):
    status, output, _ = run("make", "cells", "windows.npz", "--max-windows", "50")
    assert status == 0
    assert "images covered: 2 of 2" in output
    assert "recall at IoU 0.7: 100.0% of 2 objects" in output


def test_check_tells_by_its_exit_status_what_is_missing(run):
    assert run("make", "cells", "windows.npz", "--method", "dense", split="one")[0] == 0
    status, output, _ = run("check", "cells", "windows.npz")
    assert status == 1
    assert "images covered: 1 of 2; missing: b first" in output
    assert "of 2 objects" in output


def test_imported_windows_are_checked_too(run, tmp_path):
    boxes = np.array([[20, 18, 41, 43], [0, 0, 90, 10], [1, 1, 1, 5]], dtype=np.uint16)
    np.savez(tmp_path / "w.npz", ids=np.array(["a", "b"]), counts=np.array([1, 2]), boxes=boxes)
    status, output, _ = run("import", "cells", "windows.npz", "w.npz")
    assert status == 1
    assert "windows of zero area: 1\nwindows outside their image: 1" in output
    assert (tmp_path / "windows.npz").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("check", "cows", "w.npz"), "No data set 'cows'"),
        (("check", "cells", "w.npz"), "w.npz"),
        (("import", "cells", "w.npz", "none.mat"), "none.mat"),
        (("make", "cells", "w.npz", "--max-windows", "-1"), "0 or more, got -1"),
        (("make", "cells", "w.npz", "MODEL.NONE", "1"), "Non-existent key"),
        (("make", "cells", "w.txt"), "w.txt: expected a name that ends in .npz\n"),
        (("make", "cells", "w.pkl"), "import cells NEW.npz w.pkl PICKLE_ON True converts it"),
        (("check", "cells", "w.pkl"), "import cells NEW.npz w.pkl PICKLE_ON True converts it"),
    ],
)
def test_an_error_is_one_line(run, args, message):
    status, _, errors = run(*args)
    assert status == 1
    assert message in errors
    assert errors.count("\n") == 1
