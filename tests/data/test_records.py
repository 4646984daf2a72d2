# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data.proposals import write_proposals
from maploss.data.records import load_records


def make_record(image_id, is_crowd):
    annotation = {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0, "iscrowd": int(is_crowd)}
    return {"image_id": image_id, "width": 100, "height": 80, "annotations": [annotation]}


@pytest.fixture
def registered(tmp_path):
    """Names and proposal files of two data sets that have images of the same names."""
    names, files = ["records_1", "records_2"], []
    for i, name in enumerate(names):
        DatasetCatalog.register(name, lambda: [make_record("a", False), make_record("b", True)])
        MetadataCatalog.get(name).set(thing_classes=["x"])
        files.append(str(tmp_path / f"{name}.npz"))
        write_proposals(files[-1], ["b", "a"], [[[0, 0, 1, 1]], [[0, 0, i + 5, 5]]])
    yield names, files
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_each_data_set_has_the_windows_of_its_own_file(registered):
    names, files = registered
    records = load_records(names, files, filter_empty=True)
    assert [x["image_id"] for x in records] == ["a", "a"]
    assert [x["proposal_boxes"].tolist() for x in records] == [[[0, 0, 5, 5]], [[0, 0, 6, 5]]]
    assert len(load_records(names, files, filter_empty=False)) == 4
    assert "proposal_boxes" not in load_records(names, None, filter_empty=False)[0]


@pytest.mark.parametrize("position", [0, 1])
def test_a_data_set_of_background_only_trains_with_others_not_alone(registered, position):
    names, files = registered
    background = [make_record("c", True), {**make_record("d", False), "annotations": []}]
    DatasetCatalog.remove(names[position])
    DatasetCatalog.register(names[position], lambda: background)
    records = load_records(names, files, filter_empty=True)
    assert [x["image_id"] for x in records] == ["a"]
    with pytest.raises(ValueError, match=f"No image with an object in .*{names[position]}"):
        load_records([names[position]], [files[position]], filter_empty=True)


def test_another_number_of_files_and_other_classes_are_errors(registered):
    names, files = registered
    with pytest.raises(ValueError, match="expected one per data set"):
        load_records(names, files[:1], filter_empty=True)
    MetadataCatalog.remove(names[1])
    MetadataCatalog.get(names[1]).set(thing_classes=["y"])
    with pytest.raises(ValueError, match="thing_classes"):
        load_records(names, files, filter_empty=True)


def test_a_pickle_is_not_read(registered, tmp_path):
    class Creates:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    names, files = registered
    for name in ("p.pkl", "p.npz"):
        (tmp_path / name).write_bytes(pickle.dumps({"boxes": np.zeros(3), "ids": Creates()}))
        with pytest.raises(ValueError, match=name):
            load_records(names, [files[0], str(tmp_path / name)], filter_empty=True)
        assert not (tmp_path / "ran").exists()
