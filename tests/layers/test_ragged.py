# SPDX-License-Identifier: Apache-2.0
import torch
from maploss.layers.ragged import RaggedIndex


def test_values_of_a_key_keep_their_order():
    # Long enough for a sort that is not stable to show.
    keys = torch.randint(0, 5, (20_000,), generator=torch.Generator().manual_seed(0))
    index = RaggedIndex(keys, torch.arange(len(keys)), num_keys=6)
    for key in range(6):
        source, values = index.expand(torch.tensor([key]))
        assert source.tolist() == [0] * len(values)
        assert values.tolist() == (keys == key).nonzero().squeeze(1).tolist()


def test_keys_that_are_left_out_have_no_values():
    index = RaggedIndex(torch.tensor([1, 0, 1]), torch.tensor([7, 8, 9]), num_keys=3)
    source, values = index.expand(
        torch.tensor([1, 0, 2, 1]), torch.tensor([False, True, True, True])
    )
    assert source.tolist() == [1, 3, 3]
    assert values.tolist() == [8, 7, 9]
