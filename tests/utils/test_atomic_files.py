# SPDX-License-Identifier: Apache-2.0
import errno
import os
import stat

import pytest
from maploss.utils.atomic_files import new_file


@pytest.mark.parametrize("of_folders", [True, False])
def test_only_a_folder_may_be_of_a_file_system_that_flushes_none(tmp_path, monkeypatch, of_folders):
    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "x.txt"
    try:
        with new_file(str(path)) as temporary, open(temporary, "w") as f:
            f.write("x")
    except OSError:
        assert not of_folders
    assert [x.name for x in tmp_path.iterdir()] == ["x.txt"] * of_folders
