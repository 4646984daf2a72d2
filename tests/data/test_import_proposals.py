# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
import scipy.io
from maploss.data.import_proposals import import_proposals


def write_npz(path, ids=("a", "b", "c"), counts=(1, 0, 2)):
    boxes = np.arange(4 * sum(counts), dtype=np.uint16).reshape(-1, 4)
    np.savez(path, ids=np.array(ids), counts=np.array(counts, dtype=np.int32), boxes=boxes)
    return str(path)


def test_archive_is_cut_into_images(tmp_path):
    path = str(tmp_path / "p.pkl")
    import_proposals(write_npz(tmp_path / "p.npz"), path, ["c", "b"])
    with open(path, "rb") as f:
        proposals = pickle.load(f)
    assert proposals["ids"] == ["c", "b"]
    assert proposals["boxes"][0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert proposals["boxes"][1].shape == (0, 4)


def test_archive_without_an_image_names_image_and_file(tmp_path):
    npz = write_npz(tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"p\.npz: no proposals for image 'd' \(1 of 2"):
        import_proposals(npz, str(tmp_path / "p.pkl"), ["a", "d"])
    assert not (tmp_path / "p.pkl").exists()


def test_archive_with_other_arrays_or_counts_is_an_error(tmp_path):
    np.savez(tmp_path / "p.npz", ids=np.array(["a"]))
    with pytest.raises(ValueError, match="lacks"):
        import_proposals(str(tmp_path / "p.npz"), str(tmp_path / "p.pkl"), ["a"])
    npz = write_npz(tmp_path / "q.npz", ids=("a", "b"))
    with pytest.raises(ValueError, match="2 ids, 3 counts"):
        import_proposals(npz, str(tmp_path / "p.pkl"), ["a"])


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04 cut off"])
def test_bytes_that_are_no_archive_name_the_file(tmp_path, content):
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.npz: not a readable archive"):
        import_proposals(str(path), str(tmp_path / "p.pkl"), ["a"])


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
        import_proposals(path, str(tmp_path / "p.pkl"), ["a"])


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
    path = str(tmp_path / "p.pkl")
    import_proposals(mat, path, ["000007", "000005"])
    with open(path, "rb") as f:
        proposals = pickle.load(f)
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
        import_proposals(str(path), str(tmp_path / "p.pkl"), ["a"])


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"windows\.txt: expected .*\.npz.*\.mat"):
        import_proposals("windows.txt", str(tmp_path / "p.pkl"), ["a"])
    for name in ("none.npz", "none.mat"):
        with pytest.raises(FileNotFoundError, match=name):
            import_proposals(str(tmp_path / name), str(tmp_path / "p.pkl"), ["a"])
