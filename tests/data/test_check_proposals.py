# SPDX-License-Identifier: Apache-2.0
import logging
import math

import numpy as np
import pytest
from detectron2.structures import BoxMode
from maploss.data.check_proposals import check_proposals, warn_of_low_recall
from maploss.data.proposals import load_and_check, write_proposals


def make_record(image_id, *boxes, **flags):
    annotations = [
        {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **flags} for b in boxes
    ]
    return {"image_id": image_id, "width": 100, "height": 80, "annotations": annotations}


def test_recall_coverage_and_bad_boxes_are_counted(tmp_path):
    path = str(tmp_path / "p.npz")
    windows = [
        [[0, 0, 10, 10], [20, 0, 30, 6], [5, 5, 5, 9], [90, 0, 101, 9], [np.nan, 0, 1, 1]],
        np.zeros((0, 4)),
        [[0, 0, 9, 9]],
    ]
    write_proposals(path, ["a", "b", "other"], windows)
    records = [
        make_record("a", [0, 0, 10, 10], [20, 0, 30, 10], [60, 60, 70, 70]),
        make_record("b"),
        make_record("c", [0, 0, 10, 10]),
        make_record("d", [0, 0, 10, 10], difficult=1),
    ]
    report = check_proposals(records, path)
    assert report.counts.tolist() == [5, 0]
    assert (report.missing, report.without, report.num_others) == (["c", "d"], ["b"], 1)
    assert report.bad == {"not finite": 1, "of zero area": 1, "outside their image": 1}
    assert report.num_objects == 4
    assert report.recall == {0.5: 0.5, 0.7: 0.25}
    assert not report.is_good


def test_crowds_do_not_count_in_recall(tmp_path):
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [[[0, 0, 10, 10]]])
    record = make_record("a", [0, 0, 10, 10], [50, 50, 90, 70])
    record["annotations"][1]["iscrowd"] = 1
    assert check_proposals([record], path).recall == {0.5: 1, 0.7: 1}


def test_a_good_file_is_good_and_recall_without_objects_is_unknown(tmp_path):
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [[[0, 0, 100, 80]]])
    report = check_proposals([make_record("a")], path)
    assert report.is_good
    assert math.isnan(report.recall[0.5])


def test_a_file_that_holds_no_proposals_is_named(tmp_path):
    (tmp_path / "p.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"p\.npz"):
        check_proposals([make_record("a")], str(tmp_path / "p.npz"))


@pytest.mark.parametrize(("num_found", "is_low"), [(7, True), (8, False)])
def test_less_than_80_percent_recall_is_a_warning_with_what_to_do(
    tmp_path, caplog, num_found, is_low
):
    caplog.set_level(logging.WARNING)
    path = str(tmp_path / "p.npz")
    records = [make_record(str(i), [0, 0, 10, 10]) for i in range(10)]
    covering, other = [[0, 0, 10, 10]], [[50, 50, 60, 60]]
    windows = [covering if i < num_found else other for i in range(10)]
    write_proposals(path, [x["image_id"] for x in records], windows)
    warn_of_low_recall("cells", load_and_check(records, path), path, 1000)
    assert len(caplog.records) == is_low
    if is_low:
        assert "'cells'" in caplog.text
        assert "70.0% of its objects" in caplog.text
        assert "--method quality" in caplog.text
        assert "--proposals rpn" in caplog.text


def test_only_windows_that_are_used_count_for_the_warning(tmp_path, caplog):
    path = str(tmp_path / "p.npz")
    write_proposals(path, ["a"], [[[50, 50, 60, 60], [0, 0, 10, 10]]])
    records = load_and_check([make_record("a", [0, 0, 10, 10])], path)
    warn_of_low_recall("cells", records, path, 2)
    assert not caplog.records
    warn_of_low_recall("cells", records, path, 1)
    assert "the 1 of an image cover 0.0%" in caplog.text
