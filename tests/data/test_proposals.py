# SPDX-License-Identifier: Apache-2.0
import logging
import os
import zipfile

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from maploss.data import proposals
from maploss.data.proposals import load_and_check, read_proposals, write_proposals
from maploss.data.records import load_records


def make_records(*image_ids):
    return [{"image_id": i, "width": 100, "height": 80, "annotations": []} for i in image_ids]


@pytest.fixture
def registered():
    name = "proposals_of_a_test"
    DatasetCatalog.register(name, lambda: make_records("a", "b"))
    yield name
    DatasetCatalog.remove(name)


def test_written_windows_are_attached_in_their_order(tmp_path, registered):
    path = str(tmp_path / "p.npz")
    windows = np.array([[0, 0, 9, 9], [5, 5, 20, 20], [1, 2, 3, 4]])
    write_proposals(path, ["b", "a"], [windows, windows[:1]])
    records = load_records([registered], [path], filter_empty=False)
    assert records[0]["proposal_boxes"].tolist() == windows[:1].tolist()
    assert records[1]["proposal_boxes"].tolist() == windows.tolist()
    assert load_and_check(make_records("b"), path)[0]["proposal_boxes"].tolist() == windows.tolist()


def test_missing_image_names_image_and_file(tmp_path):
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [np.zeros((1, 4))])
    with pytest.raises(ValueError, match=r"p\.npz: no proposals for image 'b' \(1 of 2 images"):
        load_and_check(make_records("a", "b"), path)


def test_windows_are_clipped_or_dropped_with_one_counted_warning(tmp_path, caplog):
    path = str(tmp_path / "p.npz")
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
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [np.array([[1, 1, 5, 5], box])])
    with pytest.raises(ValueError, match=rf"p\.npz: image 'a': .*{says}"):
        load_and_check(make_records("a"), path)


def test_an_array_of_objects_runs_no_code(tmp_path):
    ran, path = str(tmp_path / "ran"), str(tmp_path / "p.npz")

    class Creates:
        def __reduce__(self):
            return open, (ran, "w")

    for name in ("ids", "counts", "boxes", "made_by"):
        arrays = {"ids": np.array(["a"]), "counts": np.ones(1, int), "boxes": np.zeros((1, 4))}
        np.savez(path, **(arrays | {name: np.array([Creates()], dtype=object)}))
        with pytest.raises(ValueError, match=r"p\.npz: .*allow_pickle=False"):
            read_proposals(path)
        assert not os.path.exists(ran)
    # An array that does not belong there is not looked at.
    np.savez(path, **arrays, other=np.array([Creates()], dtype=object))
    assert read_proposals(path)["ids"] == ["a"]
    assert not os.path.exists(ran)


def test_detectron2s_pickles_are_told_how_to_convert(tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"p\.pkl: .*PICKLE_ON True.*tools/proposals.py import"):
        load_and_check(make_records("a"), str(tmp_path / "p.pkl"))


def test_an_image_that_comes_twice_is_an_error(tmp_path):
    write_proposals(str(tmp_path / "p.npz"), ["a", "a"], [np.zeros((1, 4))] * 2)
    with pytest.raises(ValueError, match=r"p\.npz: image 'a' comes twice"):
        load_and_check(make_records("a"), str(tmp_path / "p.npz"))


def test_no_images_and_images_without_windows_are_written_and_read(tmp_path):
    path = str(tmp_path / "p.npz")
    write_proposals(path, [], [])
    assert read_proposals(path) == {"ids": [], "boxes": [], "made_by": ""}
    write_proposals(path, [1, "b"], [[], np.zeros((0, 4))], "me")
    found = read_proposals(path)
    assert (found["ids"], found["made_by"]) == (["1", "b"], "me")
    assert [x.shape for x in found["boxes"]] == [(0, 4)] * 2


def test_the_same_windows_make_the_same_bytes_and_leave_nothing_beside(tmp_path):
    for name in "ab":
        write_proposals(str(tmp_path / f"{name}.npz"), ["x"], [[[0, 0, 9, 9]]])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


def test_boxes_to_be_written_have_four_numbers_each(tmp_path):
    with pytest.raises(ValueError, match=r"\(n, 4\), got \(4, 3\)"):
        write_proposals(str(tmp_path / "p.npz"), ["a"], [np.zeros((4, 3))])


def write_compressed(path, num_boxes):
    """Windows that are all zero; those of the header, not of the memory that writes them."""
    np.savez_compressed(path, ids=np.array(["a"]), counts=np.array([num_boxes]))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("boxes.npy", "w") as f,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_boxes, 4)}
        np.lib.format.write_array_header_1_0(f, header)
        for _ in range(num_boxes // 1000):
            f.write(bytes(16_000))
    return str(path)


def test_compressed_windows_are_read_unless_they_would_fill_the_memory(tmp_path, monkeypatch):
    path = write_compressed(tmp_path / "p.npz", 1_000_000)
    assert len(read_proposals(path)["boxes"][0]) == 1_000_000
    monkeypatch.setattr(proposals, "_MAX_UNPACKED", 15_000_000)
    with pytest.raises(ValueError, match=r"p\.npz: .*expected at most 15000000 bytes unpacked"):
        read_proposals(path)
    # As much as that, but in a file of a size that goes with it.
    boxes = np.random.default_rng(0).integers(0, 500, (1_000_000, 4), dtype=np.uint16)
    np.savez_compressed(path, ids=["a"], counts=[len(boxes)], boxes=boxes.astype(np.float32))
    assert (read_proposals(path)["boxes"][0] == boxes).all()
