# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from maploss.data import make_proposals as module
from maploss.data.cached_proposals import cached_proposals
from maploss.data.proposal_files import proposal_files_for
from maploss.data.proposals import read_proposals


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Two images of the data set "cached / test"."""
    monkeypatch.setenv("MAPLOSS_CACHE", str(tmp_path / "cache"))
    found = []
    for i in range(2):
        image = np.full((60, 80, 3), 200, np.uint8)
        cv2.circle(image, (20 + 8 * i, 30), 12, (20, 40 * i, 200), -1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        file = str(tmp_path / f"{i}.png")
        found.append({"file_name": file, "image_id": i, "width": 80, "height": 60})
    DatasetCatalog.register("cached / test", lambda: [dict(x) for x in found])
    yield found
    DatasetCatalog.remove("cached / test")


def test_missing_windows_are_made_once_in_the_cache(records, tmp_path, monkeypatch):
    (path,) = proposal_files_for(["cached / test"])
    assert path.startswith(str(tmp_path / "cache" / "proposals" / "cached_test-reduced-2000-"))
    assert read_proposals(path)["ids"] == ["0", "1"]
    monkeypatch.setattr(module, "reduced_search", None)  # would raise
    assert proposal_files_for(["cached / test"]) == (path,)


def test_other_images_of_the_same_name_get_windows_of_their_own(records):
    first = cached_proposals("cached / test", records)
    cv2.imwrite(records[1]["file_name"], np.zeros((60, 80, 3), np.uint8))
    assert cached_proposals("cached / test", records) != first
    records.pop()
    assert read_proposals(cached_proposals("cached / test", records))["ids"] == ["0"]
