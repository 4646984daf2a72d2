# SPDX-License-Identifier: Apache-2.0
"""
How near each transitivity level comes to the exact gradient of AP after NMS.

    python -m experiments.transitivity [--scenes 210]

Random scenes of 3 images x 14 windows; the exact gradient is that of NMS and AP run anew at every
place between two other scores (`tests/reference`). Prints a table in Markdown.
"""

import argparse

import torch
from maploss.layers import nms_ap_steps, pseudo_gradient
from maploss.layers.average_precision import AP_TYPES
from maploss.layers.steps.nms_ap_steps import TRANSITIVITIES
from tabulate import tabulate

from tests.scenes import differing, oracle_steps, random_scene


def main() -> None:
    """Prints one row for each level, means over the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--scenes", type=int, default=210)
    num_scenes = parser.parse_args().scenes
    found: dict[str, list[list[float]]] = {level: [] for level in TRANSITIVITIES}
    for seed in range(num_scenes):
        scene, ap_type = random_scene(seed), AP_TYPES[seed % len(AP_TYPES)]
        oracle = oracle_steps(scene, ap_type)
        for level in TRANSITIVITIES:
            steps = nms_ap_steps(*scene, ap_type=ap_type, transitivity=level)
            numbers = []
            for estimator in ("sde", "mee"):
                gradient, exact = (
                    pseudo_gradient(s, scene.scores, estimator) for s in (steps, oracle)
                )
                numbers.append(float(torch.cosine_similarity(gradient, exact, dim=0)))
            wrong = (gradient * exact < 0).double().mean()
            right = (~differing(steps, oracle)).double().mean()
            found[level].append([*numbers, 100 * float(wrong), 100 * float(right)])
    rows = [
        [f"`{level}`", *torch.tensor(found[level]).mean(0).tolist()]
        for level in reversed(TRANSITIVITIES)
    ]
    headers = ["level", "cosine, SDE", "cosine, MEE", "wrong sign, %", "both steps exact, %"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ".3f", ".3f", ".1f", ".1f")))
    print(f"\n{num_scenes} scenes, {num_scenes * 42} windows")


if __name__ == "__main__":
    main()
