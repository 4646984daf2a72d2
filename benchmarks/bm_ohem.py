# SPDX-License-Identifier: Apache-2.0
"""
Time and memory of training with hard windows (Shrivastava et al. 2016, Table 2 and section 4.2).

    python -m benchmarks.bm_ohem [--network M] [--steps 3] [--windows 2000] [--device cuda]

2 images of noise, 600 x 800, with --windows windows each, 128 of which train: sampled (plain), the
hardest after a read-only pass (OHEM), and the hardest with the losses of the others set to zero
(one pass). Each method runs in a process of its own, by turns, which tells its peak of memory: on a
CPU what the process holds at most, on CUDA what torch has allocated at most. Weights are random.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import maploss  # noqa: F401 (registers the models)
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from maploss.engine import build_optimizer, load_config

from benchmarks.report import Row, machine, table

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "OHEM"
METHODS = {
    "plain": ["MODEL.ROI_HEADS.NAME", "SoftmaxROIHeads"],
    "OHEM": ["MODEL.ROI_HEADS.NAME", "OHEMROIHeads"],
    "one pass": ["MODEL.ROI_HEADS.NAME", "OHEMROIHeads", "MODEL.OHEM.ONE_PASS_ON", "True"],
}
# The paper's times and memory, as ratios to plain; VGG16's are of two passes of one image, here it
# is one of both. Of one pass it says "> 2x faster" and "similar".
PAPER = {"M": (0.22 / 0.13, 3.6 / 2.6), "L": (1.00 / 0.57, 8.7 / 6.4)}
SIZE = (600, 800)


def make_batch(num_windows: int) -> list[dict]:
    """2 images with 3 objects each; a tenth of the windows are near an object."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([SIZE[1], SIZE[0]] * 2)
    batch = []
    for _ in range(2):
        corners = torch.rand(num_windows, 2, generator=generator) * (limits[:2] - 100)
        sizes = 20 + 300 * torch.rand(num_windows, 2, generator=generator)
        boxes = torch.cat([corners, corners + sizes], dim=1)
        objects = boxes[:3].clamp(min=0).minimum(limits)
        near = num_windows // 10
        boxes[:near] = objects[torch.arange(near) % 3]
        boxes[:near] += 10 * torch.randn(near, 4, generator=generator)
        proposals, instances = Instances(SIZE), Instances(SIZE)
        proposals.proposal_boxes = Boxes(boxes.clamp(min=0).minimum(limits))
        instances.gt_boxes, instances.gt_classes = Boxes(objects), torch.tensor([1, 7, 14])
        image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "proposals": proposals, "instances": instances})
    return batch


def run_method(method: str, network: str, steps: int, num_windows: int, device: str) -> None:
    """In a process of its own: prints seconds of the steps and the peak in MiB as JSON."""
    overrides = [*METHODS[method], "MODEL.DEVICE", device, "MODEL.WEIGHTS", ""]
    cfg = load_config(str(CONFIGS / f"{network}.yaml"), overrides)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch, times = make_batch(num_windows), []
    with EventStorage():
        for _ in range(steps + 1):
            start = time.perf_counter()
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"times": times[1:], "peak": peak}))  # the first step warms up


def measure(
    device: str = "cpu",
    *,
    network: str = "M",
    steps: int = 3,
    num_windows: int = 2000,
    num_turns: int = 2,
) -> list[Row]:
    """Each method `num_turns` times, by turns."""
    options = {"network": network, "steps": steps, "windows": num_windows, "device": device}
    command = [sys.executable, "-m", "benchmarks.bm_ohem"]
    command += [f"--{key}={x}" for key, x in options.items()]
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    peaks: dict[str, float] = {}
    for _ in range(num_turns):
        for name in METHODS:
            done = subprocess.run(
                [*command, "--method", name], stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            times[name] += found["times"]
            peaks[name] = max(found["peak"], peaks.get(name, 0.0))
    medians = {name: statistics.median(x) for name, x in times.items()}
    time_ratio, peak_ratio = PAPER[network]
    notes = {
        "plain": f"{network}, 2 images x {num_windows} windows",
        "OHEM": f"the paper: {time_ratio:.2f}, peak {peak_ratio:.2f} x",
        "one pass": f"{medians['one pass'] / medians['OHEM']:.2f} x OHEM (goal 2)",
    }
    return [
        Row(
            Path(__file__).stem,
            name,
            1e3 * medians[name],
            medians[name] / medians["plain"],
            "plain",
            peaks[name],
            f"peak, {peaks[name] / peaks['plain']:.2f} x plain",
            notes[name],
        )
        for name in METHODS
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--network", choices=tuple(PAPER), default="M")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", choices=tuple(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        run_method(args.method, args.network, args.steps, args.windows, args.device)
        return
    print(machine(args.device))
    options = {"network": args.network, "steps": args.steps, "num_windows": args.windows}
    print(table(measure(args.device, **options)))


if __name__ == "__main__":
    main()
