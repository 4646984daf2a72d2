# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import time
import tracemalloc

import cv2
import numpy as np
import pytest
from maploss.data import make_proposals as module
from maploss.data.make_proposals import make_proposals
from maploss.data.proposals import load_and_check, read_proposals, write_proposals

from tests.distributed import start_fresh


@pytest.fixture
def records(tmp_path):
    """Five images, each with another circle."""
    found = []
    for i in range(5):
        image = np.full((60, 80, 3), 200, np.uint8)
        cv2.circle(image, (20 + 8 * i, 30), 12, (20, 40 * i, 200), -1)
        file_name = str(tmp_path / f"{i}.png")
        cv2.imwrite(file_name, image)
        record = {"file_name": file_name, "image_id": f"a/{i}", "width": 80, "height": 60}
        found.append(record)
    return found


def read(path):
    return read_proposals(str(path))


def test_the_file_has_all_images_in_their_order_and_is_the_same_every_time(tmp_path, records):
    paths = [str(tmp_path / name) for name in ("one.npz", "two.npz")]
    for path in paths:
        make_proposals(records, path)
    one, two = map(read, paths)
    assert one["ids"] == [x["image_id"] for x in records]
    for first, second in zip(one["boxes"], two["boxes"], strict=True):
        assert len(first) > 3
        assert np.array_equal(first, second)
    assert sorted(os.listdir(tmp_path))[-2:] == ["one.npz", "two.npz"]
    load_and_check(records, paths[0])


@pytest.mark.parametrize("method", ["quality", "dense"])
def test_other_methods_and_the_number_of_windows_are_as_asked_for(tmp_path, records, method):
    path, few = str(tmp_path / "all.npz"), str(tmp_path / "few.npz")
    make_proposals(records[:1], path, method, max_windows=0)
    make_proposals(records[:1], few, method, max_windows=3)
    every, some = read(path)["boxes"][0].tolist(), read(few)["boxes"][0].tolist()
    assert len(every) > 4
    assert len(some) == 3
    assert method == "dense" or some == every[:3]


def test_what_was_made_before_is_not_made_again(tmp_path, records, monkeypatch):
    path = str(tmp_path / "p.npz")
    real, calls = module.selective_search, []

    def fail_at_the_last(image, method):
        calls.append(1)
        if len(calls) == 4:
            raise OSError("stop")
        return real(image, method)

    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(module, "selective_search", fail_at_the_last)
    with pytest.raises(OSError, match="stop"):
        make_proposals(records, path)
    assert not os.path.exists(path)
    make_proposals(records, path)
    assert len(calls) == 4 + 2
    make_proposals(records, path)
    assert len(calls) == 6


def test_killed_at_any_moment_it_goes_on_to_the_same_windows(tmp_path, records):
    path, whole = str(tmp_path / "killed.npz"), str(tmp_path / "whole.npz")
    process = start_fresh(make_proposals, records, path)
    parts = f"{path}.parts"
    deadline = time.time() + 120
    while time.time() < deadline and process.is_alive():
        if os.path.isdir(parts) and any(x.endswith(".npy") for x in os.listdir(parts)):
            break
        time.sleep(0.001)
    process.kill()
    process.join()
    make_proposals(records, path)
    make_proposals(records, whole)
    assert read(path)["ids"] == read(whole)["ids"]
    for first, second in zip(read(path)["boxes"], read(whole)["boxes"], strict=True):
        assert np.array_equal(first, second)
    assert not os.path.exists(parts)


def test_other_settings_and_another_process_are_errors_that_name_the_folder(tmp_path, records):
    path = str(tmp_path / "p.npz")
    parts = tmp_path / "p.npz.parts"
    parts.mkdir()
    (parts / "settings.json").write_text('{"method": "quality", "max_windows": 2000}')
    with pytest.raises(ValueError, match=r"p\.npz\.parts: begun with .*'quality'.*'fast'"):
        make_proposals(records, path)
    with open(parts / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"p\.npz\.parts: another process"):
            make_proposals(records, path, "quality")


def test_an_unreadable_image_is_named_and_the_rest_is_kept(tmp_path, records):
    with open(records[2]["file_name"], "r+b") as f:
        f.truncate(60)
    with pytest.raises(OSError, match=r"Cannot read image .*2\.png"):
        make_proposals(records, str(tmp_path / "p.npz"))


def test_a_file_of_other_images_is_not_taken_for_finished(tmp_path, records):
    path = str(tmp_path / "p.npz")
    write_proposals(path, [x["image_id"] for x in records], [np.zeros((1, 4))] * len(records))
    with pytest.raises(ValueError, match=r"p\.npz: exists, and was not made with"):
        make_proposals(records, path)


@pytest.mark.parametrize("is_finished", [True, False])
def test_windows_of_other_images_of_the_same_ids_are_not_taken_over(
    tmp_path, records, is_finished, monkeypatch
):
    path = str(tmp_path / "p.npz")
    if not is_finished:
        monkeypatch.setattr("maploss.data.make_proposals.write_proposals", _die)
        with pytest.raises(KeyboardInterrupt):
            make_proposals(records, path, "dense")
        monkeypatch.undo()
    else:
        make_proposals(records, path, "dense")
    other = str(tmp_path / "other.png")
    cv2.imwrite(other, np.zeros((30, 20, 3), np.uint8))
    others = [{**x, "file_name": other} for x in records]
    if is_finished:
        with pytest.raises(ValueError, match="exists, and was not made with"):
            make_proposals(others, path, "dense")
    else:
        make_proposals(others, path, "dense")
        assert max(x.max() for x in read_proposals(path)["boxes"]) == 30


def test_a_finished_file_of_another_method_is_not_taken_over(tmp_path, records):
    path = str(tmp_path / "p.npz")
    make_proposals(records, path, "dense", 10)
    with pytest.raises(ValueError, match=r"not made with .*'max_windows': 20\}"):
        make_proposals(records, path, "dense", 20)


def test_what_a_kill_in_the_last_write_leaves_is_removed(tmp_path, records):
    leftover = tmp_path / ".p.tmp-x1"
    leftover.mkdir()
    (leftover / "file.npz").write_bytes(b"half")
    make_proposals(records, str(tmp_path / "p.npz"), "dense", 10)
    assert not leftover.exists()


def test_a_part_that_was_not_written_to_its_end_is_made_again(tmp_path, records, monkeypatch):
    path, save = str(tmp_path / "p.npz"), np.save

    def write_half(name, windows):
        save(name, windows[: len(windows) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        make_proposals(records, path, "dense", 100)
    monkeypatch.undo()
    make_proposals(records, path, "dense", 100)
    assert 80 < min(map(len, read_proposals(path)["boxes"])) <= 100


def _die(*args):
    raise KeyboardInterrupt


def test_unknown_methods_and_negative_numbers_are_errors(tmp_path, records):
    with pytest.raises(ValueError, match="'slow'"):
        make_proposals(records, str(tmp_path / "p.npz"), "slow")
    with pytest.raises(ValueError, match="0 or more, got -1"):
        make_proposals(records, str(tmp_path / "p.npz"), max_windows=-1)


def test_writing_keeps_the_windows_of_one_image_in_memory_not_of_all(tmp_path):
    """400 images of 2000 windows are 12.8 MB."""
    tracemalloc.start()
    try:
        windows = (np.zeros((2000, 4), dtype=np.float32) + i for i in range(400))
        write_proposals(str(tmp_path / "p.npz"), [str(i) for i in range(400)], windows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6
    written = read(tmp_path / "p.npz")
    assert [x[0, 0] for x in written["boxes"]] == list(range(400))
    assert [len(x) for x in written["boxes"]] == [2000] * 400
