# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from maploss.data.proposal_files import proposal_files_for
from maploss.data.proposals import read_proposals, write_proposals


def make_records(*image_ids):
    return [{"image_id": i, "width": 100, "height": 80, "annotations": []} for i in image_ids]


@pytest.fixture
def registered():
    name = "proposals_of_a_test"
    DatasetCatalog.register(name, lambda: make_records("a", "b"))
    yield name
    DatasetCatalog.remove(name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPLOSS_CACHE", str(tmp_path / "cache"))


def write_npz(path, ids=("a", "b", "c"), counts=(1, 0, 2)):
    boxes = np.arange(4 * sum(counts), dtype=np.uint16).reshape(-1, 4)
    np.savez(path, ids=np.array(ids), counts=np.array(counts, dtype=np.int32), boxes=boxes)
    return str(path)


def test_a_given_archive_is_used_as_it_is(tmp_path, registered):
    npz = write_npz(tmp_path / "p.npz")
    assert proposal_files_for([registered], [npz]) == (npz,)


def write_pickle(path, *boxes):
    content = {"ids": ["a", "b"], "boxes": boxes, "objectness_logits": [np.zeros(1)] * 2}
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_a_given_pickle_is_converted_once_and_again_when_it_changes(tmp_path, registered):
    path = write_pickle(tmp_path / "p.pkl", [[1, 1, 5, 5]], [[2, 2, 5, 5]])
    with pytest.raises(ValueError, match=r"p\.pkl: .*PICKLE_ON True"):
        proposal_files_for([registered], [path])
    first = proposal_files_for([registered], [path], allow_pickle=True)
    assert first == proposal_files_for([registered], [path], allow_pickle=True)
    assert read_proposals(first[0])["boxes"][1].tolist() == [[2, 2, 5, 5]]
    write_pickle(tmp_path / "p.pkl", [[1, 1, 5, 5.5]], [[2, 2, 5, 5]])
    assert proposal_files_for([registered], [path], allow_pickle=True) != first


def test_given_files_are_checked(tmp_path, registered):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        proposal_files_for([registered], ["nowhere.npz"])
    with pytest.raises(ValueError, match="expected one per data set"):
        proposal_files_for([registered], ["x.npz", "y.npz"])
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [np.zeros((0, 4))])
    with pytest.raises(ValueError, match="no proposals for image 'b'"):
        proposal_files_for([registered], [path])
