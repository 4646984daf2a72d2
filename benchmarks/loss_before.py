# SPDX-License-Identifier: Apache-2.0
"""
Times `map_loss` with its defaults, one overlap, by whichever package is on the path: what
`bm_map_loss.py --before` starts with that of another checkout.

    python benchmarks/loss_before.py MINIBATCH

For each line of its input it writes the seconds of one forward and backward.
"""

import sys
import time

import torch
from maploss.layers import map_loss


def main() -> None:
    """Until the input ends."""
    batch = torch.load(sys.argv[1])
    for _ in sys.stdin:
        scores = batch[0].clone().requires_grad_()
        start = time.perf_counter()
        loss, _ = map_loss(scores, *batch[1:])
        loss.backward()
        if scores.is_cuda:
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
