# SPDX-License-Identifier: Apache-2.0
import logging
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from maploss.data.proposals import (
    load_and_check,
    read_proposals,
    write_proposals,
)


def make_records(*image_ids):
    return [{"image_id": i, "width": 100, "height": 80, "annotations": []} for i in image_ids]


@pytest.fixture
def registered():
    name = "proposals_of_a_test"
    DatasetCatalog.register(name, lambda: make_records("a", "b"))
    yield name
    DatasetCatalog.remove(name)


def test_detectron2_reads_written_proposals_in_their_order(tmp_path, registered):
    path = str(tmp_path / "p.pkl")
    windows = np.array([[0, 0, 9, 9], [5, 5, 20, 20], [1, 2, 3, 4]])
    write_proposals(path, ["b", "a"], [windows, windows[:1]])
    records = get_detection_dataset_dicts([registered], filter_empty=False, proposal_files=[path])
    assert records[0]["proposal_boxes"].tolist() == windows[:1].tolist()
    assert records[1]["proposal_boxes"].tolist() == windows.tolist()
    assert load_and_check(make_records("b"), path)[0]["proposal_boxes"].tolist() == windows.tolist()


def test_missing_image_names_image_and_file(tmp_path):
    path = str(tmp_path / "p.pkl")
    write_proposals(path, ["a"], [np.zeros((1, 4))])
    with pytest.raises(ValueError, match=r"p\.pkl: no proposals for image 'b' \(1 of 2 images"):
        load_and_check(make_records("a", "b"), path)


def test_windows_are_clipped_or_dropped_with_one_counted_warning(tmp_path, caplog):
    path = str(tmp_path / "p.pkl")
    boxes = [[-5, 0, 120, 90], [10, 10, 10, 20], [200, 0, 200, 50], [1, 1, 5, 5]]
    write_proposals(path, ["a", "b"], [np.array(boxes), np.zeros((0, 4))])
    with caplog.at_level(logging.WARNING):
        record, _ = load_and_check(make_records("a", "b"), path)
        load_and_check(make_records("a", "b"), path)  # a run reads it more than once
    assert record["proposal_boxes"].tolist() == [[0, 0, 100, 80], [1, 1, 5, 5]]
    assert record["proposal_objectness_logits"].tolist() == [0, -3]
    assert len(caplog.records) == 1
    assert "1 windows reach outside" in caplog.text
    assert "2 of zero area are dropped" in caplog.text
    assert "1 of 2 images have none" in caplog.text


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([1, 1, float("nan"), 5], "expected finite boxes"),
        ([1, 1, float("inf"), 5], "expected finite boxes"),
        ([200, 0, 300, 50], r"lies outside of 100 x 80 pixels; windows of another data set\?"),
    ],
)
def test_windows_that_cannot_be_right_name_image_and_file(tmp_path, box, says):
    path = str(tmp_path / "p.pkl")
    write_proposals(path, ["a"], [np.array([[1, 1, 5, 5], box])])
    with pytest.raises(ValueError, match=rf"p\.pkl: image 'a': .*{says}"):
        load_and_check(make_records("a"), path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ids": ["a", "a"]}, "image 'a' comes twice"),
        ({"objectness_logits": [np.zeros(1), np.array([np.nan])]}, "image 'b': .*logits"),
        ({"objectness_logits": [np.zeros(1), np.zeros(2)]}, r"image 'b': 1 boxes .*\(2,\)"),
    ],
)
def test_ids_and_logits_are_checked(tmp_path, changes, says):
    path = tmp_path / "p.pkl"
    content = {"ids": ["a", "b"], "boxes": [np.array([[1, 1, 5, 5]])] * 2}
    content |= {"objectness_logits": [np.zeros(1)] * 2, **changes}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"p\.pkl: {says}"):
        load_and_check(make_records("a", "b"), str(path))


class _Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_a_proposal_file_runs_no_code(tmp_path):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"ids": _Malicious()}))
    with pytest.raises(ValueError, match=r"p\.pkl: .*builtins\.exec has no place in a proposal"):
        read_proposals(str(path))


def test_proposals_of_the_first_detectron_and_in_xywh_are_read(tmp_path):
    path = tmp_path / "p.pkl"
    boxes = [np.array([[10, 10, 5, 5], [0, 0, 20, 30]], dtype=np.float32)]
    scores = [np.array([0.1, 0.9], dtype=np.float32)]
    content = {"indexes": [7], "boxes": boxes, "scores": scores, "bbox_mode": BoxMode.XYWH_ABS}
    path.write_bytes(pickle.dumps(content))
    (record,) = load_and_check(make_records(7), str(path))
    assert record["proposal_boxes"].tolist() == [[0, 0, 20, 30], [10, 10, 15, 15]]


def test_boxes_to_be_written_have_four_numbers_each(tmp_path):
    with pytest.raises(ValueError, match=r"\(n, 4\), got \(4, 3\)"):
        write_proposals(str(tmp_path / "p.pkl"), ["a"], [np.zeros((4, 3))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [np.zeros((1, 4))]}, "lists of one length, got .*'boxes': 1"),
        ({"objectness_logits": []}, "lists of one length, got .*'objectness_logits': 0"),
        ({"boxes": 5}, "expected lists"),
        ({"bbox_mode": 99}, "99 is not a valid BoxMode"),
        ({"boxes": [np.zeros((4, 3)), np.zeros((3, 4))]}, r"image 'a': .*got \(4, 3\)"),
        ({"boxes": [[[1, 2, 3, 4], [5]], np.zeros((3, 4))]}, "image 'a'"),
        ({"objectness_logits": [np.zeros((3, 1)), np.zeros(3)]}, r"image 'a': .*\(3, 1\)"),
    ],
)
def test_lists_and_arrays_of_another_shape_name_the_file(tmp_path, changes, message):
    path = tmp_path / "p.pkl"
    good = {"boxes": [np.zeros((3, 4))] * 2, "objectness_logits": [np.zeros(3)] * 2}
    path.write_bytes(pickle.dumps({"ids": ["a", "b"]} | good | changes))
    with pytest.raises(ValueError, match=rf"p\.pkl: .*{message}"):
        load_and_check(make_records("a", "b"), str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"no pickle",
        b"",
        b"cnowhere\nnothing\n.",
        b"\x80\xff.",
        b"0.",
        pickle.dumps([1]),
        pickle.dumps({"a": 1}),
    ],
)
def test_file_that_holds_no_proposals_is_named(tmp_path, content):
    path = tmp_path / "p.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.pkl"):
        load_and_check(make_records("a"), str(path))
