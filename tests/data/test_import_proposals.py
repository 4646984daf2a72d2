# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
import scipy.io
from detectron2.structures import BoxMode
from maploss.data.import_proposals import import_proposals
from maploss.data.proposals import load_and_check, read_proposals


def write_npz(path, ids=("a", "b", "c"), counts=(1, 0, 2)):
    boxes = np.arange(4 * sum(counts), dtype=np.uint16).reshape(-1, 4)
    np.savez(path, ids=np.array(ids), counts=np.array(counts, dtype=np.int32), boxes=boxes)
    return str(path)


def test_archive_is_cut_into_images(tmp_path):
    path = str(tmp_path / "out.npz")
    import_proposals(write_npz(tmp_path / "p.npz"), path, ["c", "b"])
    proposals = read_proposals(path)
    assert proposals["ids"] == ["c", "b"]
    assert proposals["boxes"][0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert proposals["boxes"][1].shape == (0, 4)


def test_archive_without_an_image_names_image_and_file(tmp_path):
    npz = write_npz(tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"p\.npz: no proposals for image 'd' \(1 of 2"):
        import_proposals(npz, str(tmp_path / "out.npz"), ["a", "d"])
    assert not (tmp_path / "out.npz").exists()


def test_archive_with_other_arrays_or_counts_is_an_error(tmp_path):
    np.savez(tmp_path / "p.npz", ids=np.array(["a"]))
    with pytest.raises(ValueError, match="lacks"):
        import_proposals(str(tmp_path / "p.npz"), str(tmp_path / "out.npz"), ["a"])
    npz = write_npz(tmp_path / "q.npz", ids=("a", "b"))
    with pytest.raises(ValueError, match="2 ids, 3 counts"):
        import_proposals(npz, str(tmp_path / "out.npz"), ["a"])


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04 cut off"])
def test_bytes_that_are_no_archive_name_the_file(tmp_path, content):
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.npz: not a readable archive"):
        import_proposals(str(path), str(tmp_path / "out.npz"), ["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((4, 3))}, r"boxes \(m, 4\), got .*\(4, 3\)"),
        ({"boxes": np.zeros(3)}, r"boxes \(m, 4\), got .*\(3,\)"),
        ({"counts": np.array([[1], [2]])}, r"counts \(n,\)"),
        ({"counts": np.array([4, -1])}, "integers >= 0"),
        ({"counts": np.array([1.5, 1.5])}, "integers >= 0"),
    ],
)
def test_arrays_of_another_shape_or_kind_name_the_archive(tmp_path, changes, message):
    path = str(tmp_path / "p.npz")
    arrays = {"ids": np.array(["a", "b"]), "counts": np.array([1, 2]), "boxes": np.zeros((3, 4))}
    np.savez(path, **(arrays | changes))
    with pytest.raises(ValueError, match=rf"p\.npz: .*{message}"):
        import_proposals(path, str(tmp_path / "out.npz"), ["a"])


def write_mat(path, names, boxes):
    """As Fast R-CNN's authors released them: columns of cells."""
    cells = np.empty((1, len(boxes)), dtype=object)
    images = np.empty((len(names), 1), dtype=object)
    for i, b in enumerate(boxes):
        cells[0, i] = np.array(b, dtype=np.float64).reshape(-1, 4)
    for i, name in enumerate(names):
        images[i, 0] = name
    scipy.io.savemat(path, {"boxes": cells, "images": images})
    return str(path)


def test_released_mat_files_lose_their_1_based_yx_convention(tmp_path):
    mat = write_mat(tmp_path / "p.mat", ["000005", "000007"], [[[1, 2, 30, 40]], []])
    path = str(tmp_path / "p.npz")
    import_proposals(mat, path, ["000007", "000005"])
    proposals = read_proposals(path)
    assert proposals["ids"] == ["000007", "000005"]
    assert proposals["boxes"][1].tolist() == [[1, 0, 40, 30]]
    assert proposals["boxes"][0].shape == (0, 4)


def cell_of(array):
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = array
    return cell


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": np.zeros((1, 1), dtype=object)}, "lacks .*images"),
        ({"images": ["a"], "boxes": np.zeros((1, 2), dtype=object)}, "for 1 images, got 2"),
        ({"images": ["a"], "boxes": cell_of(np.zeros((2, 3)))}, r"image 'a': .*\(2, 3\)"),
        (None, "not a readable .mat"),
    ],
)
def test_mat_files_with_something_else_are_named(tmp_path, content, message):
    path = tmp_path / "p.mat"
    if content is None:
        path.write_bytes(b"no archive at all, only text")
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(ValueError, match=rf"p\.mat: .*{message}"):
        import_proposals(str(path), str(tmp_path / "out.npz"), ["a"])


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"windows\.txt: expected .*\.npz.*\.mat"):
        import_proposals("windows.txt", str(tmp_path / "out.npz"), ["a"])
    for name in ("none.npz", "none.mat"):
        with pytest.raises(FileNotFoundError, match=name):
            import_proposals(str(tmp_path / name), str(tmp_path / "out.npz"), ["a"])


def import_pickle(tmp_path, content, ids=("a", "b")):
    """The proposal file that a pickle (bytes, or what is in it) becomes."""
    path = tmp_path / "p.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    out_path = str(tmp_path / "out.npz")
    import_proposals(str(path), out_path, ids, allow_pickle=True)
    return out_path


def make_content(**changes):
    content = {"ids": ["a", "b"], "boxes": [np.array([[1, 1, 5, 5]])] * 2}
    return content | {"objectness_logits": [np.zeros(1)] * 2, **changes}


def test_pickles_of_the_first_detectron_and_in_xywh_are_sorted_by_their_scores(tmp_path):
    boxes = [np.array([[10, 10, 5, 5], [0, 0, 20, 30]], dtype=np.float32)]
    scores = [np.array([0.1, 0.9], dtype=np.float32)]
    content = {"indexes": [7], "boxes": boxes, "scores": scores, "bbox_mode": BoxMode.XYWH_ABS}
    path = import_pickle(tmp_path, content, [7])
    (record,) = load_and_check([{"image_id": 7, "width": 99, "height": 99}], path)
    assert record["proposal_boxes"].tolist() == [[0, 0, 20, 30], [10, 10, 15, 15]]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_are_read_only_where_they_are_allowed(tmp_path, protocol):
    path, out_path = tmp_path / "p.pkl", str(tmp_path / "out.npz")
    path.write_bytes(pickle.dumps(make_content(), protocol=protocol))
    with pytest.raises(ValueError, match=r"p\.pkl: a pickle is read only with PICKLE_ON True"):
        import_proposals(str(path), out_path, ["a"])
    import_proposals(str(path), out_path, ["a"], allow_pickle=True)
    assert read_proposals(out_path)["boxes"][0].tolist() == [[1, 1, 5, 5]]


class Creates:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("where", ["itself", "in a list", "in an array"])
def test_a_pickle_runs_no_code(tmp_path, where):
    bad = Creates(tmp_path / "ran")
    if where != "itself":
        bad = [bad] if where == "in a list" else np.array([bad], dtype=object)
    expected = r"of plain values only, got 'O8'" if where == "in an array" else r"got _?io\.open"
    message = rf"p\.pkl: .*expected arrays .*{expected}"
    with pytest.raises(ValueError, match=message):
        import_pickle(tmp_path, make_content(boxes=bad))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [np.zeros((1, 4))]}, "lists of one length, got .*'boxes': 1"),
        ({"objectness_logits": []}, "lists of one length, got .*'objectness_logits': 0"),
        ({"boxes": 5}, "expected lists"),
        ({"bbox_mode": 99}, "99 is not a valid BoxMode"),
        ({"boxes": [np.zeros((4, 3)), np.zeros((3, 4))]}, r"image 'a': .*got \(4, 3\)"),
        ({"boxes": [[[1, 2, 3, 4], [5]], np.zeros((3, 4))]}, "image 'a'"),
        ({"objectness_logits": [np.zeros((1, 1)), np.zeros(1)]}, r"image 'a': .*\(1, 1\)"),
        ({"objectness_logits": [np.zeros(1), np.zeros(2)]}, r"image 'b': 1 boxes .*\(2,\)"),
        ({"objectness_logits": [np.zeros(1), np.array([np.nan])]}, "image 'b': .*logits"),
        ({"ids": ["a", "a"]}, "image 'a' comes twice"),
        ({"boxes": [np.full((1, 4), np.nan)] * 2}, "image 'a': expected boxes of finite numbers"),
    ],
)
def test_lists_and_arrays_of_another_shape_name_the_pickle(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"p\.pkl: .*{message}"):
        import_pickle(tmp_path, make_content(**changes))


@pytest.mark.parametrize(
    "content",
    [b"no pickle", b"", b"cnowhere\nnothing\n.", b"\x80\xff.", b"0.", [1], {"a": 1}],
)
def test_a_pickle_that_holds_no_proposals_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"p\.pkl"):
        import_pickle(tmp_path, content)
