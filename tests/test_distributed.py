# SPDX-License-Identifier: Apache-2.0
"""The processes that other tests start."""

import os
import signal

import pytest
import torch
from detectron2.utils import comm
from torch import distributed

from tests.distributed import run_ranks


def sum_of_ranks(offset):
    value = torch.tensor([float(comm.get_rank() + offset)])
    distributed.all_reduce(value)
    gathered = comm.all_gather({"rank": comm.get_rank()})
    return value, gathered, comm.get_local_rank(), comm.get_local_size()


def fail_or_die():
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("this rank fails")


def test_ranks_know_each_other_and_return_in_their_order():
    results = run_ranks(sum_of_ranks, 2, 10)
    both = [{"rank": 0}, {"rank": 1}]
    assert results == [(torch.tensor([21.0]), both, i, 2) for i in range(2)]


def test_what_ranks_that_fail_have_said_is_shown():
    with pytest.raises(AssertionError, match=r"(?s)rank 0: status 1.*this rank fails.*status -9"):
        run_ranks(fail_or_die, 2)
