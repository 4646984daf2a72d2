# SPDX-License-Identifier: Apache-2.0
import copy
import logging
import multiprocessing
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from maploss.engine.safe_checkpointer import CheckpointError, SafeCheckpointer
from torch import nn

from tests.distributed import run_ranks, start_fresh


def make_model(value=0.0, size=8):
    model = nn.Linear(size, size)
    nn.init.constant_(model.weight, value)
    return model


def load(path, **settings):
    model = make_model(-1.0)
    SafeCheckpointer(model, **settings).load(str(path))
    return model.weight[0, 0].item()


def save_runs(folder, *names):
    """Checkpoints of these names; the n-th has n as its weights. The last is the last one."""
    for value, name in enumerate(names):
        SafeCheckpointer(make_model(float(value)), str(folder)).save(name)


class Creates:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["x.pth", "x.pyth", "x.pkl", "legacy.pth", "bare.pth"])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_code_in_a_checkpoint_does_not_run(tmp_path, name, allow_pickle):
    path, content = tmp_path / name, {"model": Creates(tmp_path / "ran"), "__author__": "x"}
    if name in ("x.pkl", "bare.pth"):
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "legacy.pth")
    with pytest.raises(CheckpointError, match=rf"Cannot load checkpoint .*{name}: ") as error:
        load(path, allow_pickle=allow_pickle)
    assert not (tmp_path / "ran").exists()
    assert "weights_only=False" not in str(error.value).replace("`", "")
    expected = "PICKLE_ON True" if name == "x.pkl" and not allow_pickle else "open"
    if name != "bare.pth":
        assert expected in str(error.value)


def test_what_is_neither_a_tensor_nor_a_plain_container_is_told(tmp_path):
    torch.save({"model": {"weight": np.zeros((8, 8))}}, tmp_path / "x.pth")
    message = r"x\.pth: expected tensors and plain containers only, got numpy"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "x.pth")
    torch.save([1], tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"y\.pth: .*expected a dictionary, got list"):
        load(tmp_path / "y.pth")


def test_arrays_of_older_versions_of_numpy_are_loaded(tmp_path):
    content = {"weight": np.full((8, 8), 3, np.float32), "bias": np.zeros(8, np.float32)}
    pickled = pickle.dumps({"blobs": content}, protocol=2)
    (tmp_path / "x.pkl").write_bytes(pickled.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert load(tmp_path / "x.pkl", allow_pickle=True) == 3


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_the_model_zoo_are_loaded_where_pickles_are_allowed(tmp_path, protocol):
    weights = {"weight": np.full((8, 8), 3, np.float32), "bias": np.zeros(8, np.float32)}
    content = {"model": weights, "__author__": "somebody"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert load(tmp_path / "x.pkl", allow_pickle=True) == 3


def test_names_of_caffe2_are_matched_without_momentum(tmp_path):
    blobs = {"weight": np.full((8, 8), 3, np.float32), "weight_momentum": np.zeros((8, 8))}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    assert load(tmp_path / "x.pkl", allow_pickle=True) == 3


def test_a_checkpoint_of_pycls_is_loaded(tmp_path):
    torch.save({"model_state": make_model(3.0).state_dict()}, tmp_path / "x.pyth")
    assert load(tmp_path / "x.pyth") == 3
    torch.save({"model": {}}, tmp_path / "x.pyth")
    with pytest.raises(CheckpointError, match=r"x\.pyth: it has no model_state"):
        load(tmp_path / "x.pyth")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """One bit of the weights, in the middle of the file."""
    with zipfile.ZipFile(path) as archive:
        item = next(x for x in archive.infolist() if "/data/0" in x.filename)
    content = bytearray(path.read_bytes())
    # The last bytes of the member; how long its header is does not matter.
    content[item.header_offset + 64 + item.file_size] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, flip, remove])
def test_of_a_damaged_last_checkpoint_the_one_before_it_is_used(tmp_path, caplog, damage):
    save_runs(tmp_path, "model_0000019", "model_0000039", "model_0000009", "model_0000029")
    damage(tmp_path / "model_0000029.pth")
    checkpointer = SafeCheckpointer(make_model(), str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert checkpointer.choose_last()
    # Not 39, which is newer than the damaged one.
    before = str(tmp_path / "model_0000019.pth")
    assert checkpointer.get_checkpoint_file() == before
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.model.weight.unique().tolist() == [0]
    (record,) = caplog.records
    assert str(tmp_path / "model_0000029.pth") in record.getMessage()
    assert before in record.getMessage()
    checkpointer.save("model_0000020")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000020.pth")


def test_the_final_checkpoint_comes_after_all_and_damaged_ones_are_skipped(tmp_path):
    save_runs(tmp_path, "model_0000003", "model_0000007", "model_final")
    for name in ("model_final", "model_0000007"):
        flip(tmp_path / f"{name}.pth")
    checkpointer = SafeCheckpointer(make_model(), str(tmp_path))
    checkpointer.choose_last()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


def test_of_none_that_can_be_read_the_error_is_that_of_the_last(tmp_path):
    save_runs(tmp_path, "model_0000003", "model_0000007")
    for name in ("model_0000003", "model_0000007"):
        truncate(tmp_path / f"{name}.pth")
    checkpointer = SafeCheckpointer(make_model(), str(tmp_path))
    assert checkpointer.choose_last()
    with pytest.raises(CheckpointError, match=r"model_0000007\.pth: "):
        checkpointer.resume_or_load("", resume=True)


def test_weights_without_checksums_are_loaded(tmp_path):
    config = pytest.importorskip("torch.utils.serialization.config")
    before, config.save.compute_crc32 = config.save.compute_crc32, False
    try:
        torch.save({"model": make_model(3.0).state_dict()}, tmp_path / "x.pth")
    finally:
        config.save.compute_crc32 = before
    assert load(tmp_path / "x.pth") == 3


@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_checkpoint_that_unpacks_to_more_than_its_file_is_refused(tmp_path, is_compressed):
    torch.save({"model": {"weight": torch.zeros(1000, 1000)}}, tmp_path / "y.pth")
    kind = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(tmp_path / "y.pth") as stored,
        zipfile.ZipFile(tmp_path / "x.pth", "w", kind) as archive,
    ):
        for record in stored.infolist():
            archive.writestr(record.filename, stored.read(record))
        if not is_compressed:  # many names for the same bytes
            largest = max(archive.filelist, key=lambda x: x.file_size)
            archive.filelist += [copy.copy(largest) for _ in range(3)]
    with pytest.raises(CheckpointError, match=r"x\.pth: .*records that are not compressed"):
        load(tmp_path / "x.pth")


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    save_runs(tmp_path, "model_0000003")
    before = sorted(os.listdir(tmp_path))
    large = SafeCheckpointer(make_model(1.0, size=500), str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"Cannot save .*model_0000007\.pth: File too large"):
            large.save("model_0000007")
        with pytest.raises(OSError, match=r"Cannot save .*model_0000003\.pth: File too large"):
            large.save("model_0000003")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(tmp_path)) == before
    assert large.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")
    assert load(tmp_path / "model_0000003.pth") == 0


def save_again_and_again(folder, saved):
    checkpointer = SafeCheckpointer(nn.Linear(1000, 1000), folder)
    for i in range(1000):
        checkpointer.save(f"model_{i:07d}", iteration=i)
        saved.send(i)


@pytest.mark.parametrize("delay", [0.0, 0.005])
def test_a_kill_in_the_middle_of_saving_leaves_the_checkpoint_before(tmp_path, delay):
    saved, sender = multiprocessing.Pipe(duplex=False)
    child = start_fresh(save_again_and_again, str(tmp_path), sender)
    try:
        for _ in range(3):
            saved.recv()
        child.join(delay)
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
    checkpointer = SafeCheckpointer(nn.Linear(1000, 1000), str(tmp_path))
    last = (tmp_path / "last_checkpoint").read_text()
    content = checkpointer.resume_or_load("", resume=True)
    assert last == f"model_{content['iteration']:07d}.pth"
    assert content["iteration"] >= 2
    # What another program is writing here is left alone.
    for name in (".model_0000001.tmp-x", ".last_checkpoint.tmp-x", ".windows.tmp-x"):
        (tmp_path / name).mkdir()
    checkpointer.save("model_final")
    hidden = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert hidden == [".windows.tmp-x"]


def choose(folder):
    checkpointer = SafeCheckpointer(make_model(), os.path.join(folder, str(comm.get_rank())))
    found = checkpointer.choose_last()
    return found, checkpointer.has_checkpoint(), checkpointer.get_checkpoint_file()


def test_all_processes_take_the_file_that_the_main_one_has_chosen(tmp_path):
    for rank in "01":
        save_runs(tmp_path / rank, "model_0000003", "model_0000007")
    flip(tmp_path / "0/model_0000007.pth")
    chosen = str(tmp_path / "0/model_0000003.pth")
    assert run_ranks(choose, 2, str(tmp_path)) == [(True, True, chosen)] * 2
