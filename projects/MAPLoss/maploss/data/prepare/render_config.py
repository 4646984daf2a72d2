# SPDX-License-Identifier: Apache-2.0
"""The config of a data set, as a yaml that people read and edit."""

import json
import os
from collections.abc import Sequence

from .declare import Declared
from .settings import Settings

HEADER = "# Written by tools/prepare_data.py"


def check_output(path: str) -> None:
    """
    Raises FileExistsError where the file is another's, such as the data.yaml of a YOLO data set.

    Args:
        path: of the config that is to be written.
    """
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        if not f.read(len(HEADER)) == HEADER:
            raise FileExistsError(
                f"{path} exists and was not written by this tool: name another with --output"
            )


def render_config(
    base: str,
    declared: Declared,
    classes: Sequence[str],
    settings: Settings,
    name: str,
    model_keys: dict[str, object],
) -> str:
    """
    The text of the config.

    Args:
        base: path of the config that it stands on.
        declared: the data sets.
        classes: their names.
        settings: input size and schedule.
        name: of the data set, for OUTPUT_DIR.
        model_keys: further keys, such as MODEL.WEIGHTS.
    """
    model = {x[len("MODEL.") :]: y for x, y in model_keys.items() if x.startswith("MODEL.")}
    other_input = {x[len("INPUT.") :]: y for x, y in model_keys.items() if x.startswith("INPUT.")}
    lines = [
        f"{HEADER}. Edit it as you like. It trains by:",
        "#   python train_net.py --config-file THIS_FILE",
        f"_BASE_: {json.dumps(base)}",
        "MODEL:",
        *(f"  {key}: {json.dumps(value)}" for key, value in model.items()),
        "  ROI_HEADS:",
        f"    NUM_CLASSES: {len(classes)}",
        "DATASETS:",
        "  DECLARED:",
        *_declared_lines(declared.entries, classes),
        f"  TRAIN: {_names(declared.train)}",
        f"  TEST: {_names(declared.test)}",
        "INPUT:",
        "  # Shorter side in pixels; the longer side is at most MAX_SIZE. Small objects need more,",
        "  # and time grows with its square. 0: images as they are.",
        f"  MIN_SIZE_TRAIN: ({settings.min_size},)",
        f"  MIN_SIZE_TEST: {settings.min_size}",
        f"  MAX_SIZE_TRAIN: {settings.max_size}",
        f"  MAX_SIZE_TEST: {settings.max_size}",
        *(f"  {key}: {json.dumps(value)}" for key, value in other_input.items()),
        "SOLVER:",
        f"  IMS_PER_BATCH: {settings.minibatch}",
        f"  BASE_LR: {settings.learning_rate:g}",
        f"  MAX_ITER: {settings.iterations}",
        "  # The learning rate falls to a tenth here.",
        f"  STEPS: ({settings.iterations * 3 // 4},)",
        f"  WARMUP_ITERS: {min(50, settings.iterations // 6)}",
        f"  CHECKPOINT_PERIOD: {settings.eval_period}",
        "TEST:",
        "  # Iterations from one evaluation to the next.",
        f"  EVAL_PERIOD: {settings.eval_period}",
        "# Where a GPU is missing: outputs of the frozen backbone are computed once and then read.",
        "# An update is several times faster from then on; needs disk (docs/feature_cache.md).",
        "# DATALOADER:",
        "#   FEATURE_CACHE:",
        '#     FOLDER: "output/features"',
        f"OUTPUT_DIR: {json.dumps(f'output/{name}')}",
    ]
    return "\n".join(lines) + "\n"


def _declared_lines(entries: Sequence[dict], classes: Sequence[str]) -> list[str]:
    lines = []
    is_first = True
    for entry in entries:
        for i, (key, value) in enumerate(entry.items()):
            text = json.dumps(value, ensure_ascii=False)
            if key == "CLASSES":
                # Written once.
                text = f"&classes {text}" if is_first else "*classes"
                is_first = False
            lines.append(f"    {'-' if i == 0 else ' '} {key}: {text}")
    if is_first:  # COCO's are in its file
        shown = ", ".join(classes)
        lines.append(f"    # Classes: {shown[:80]}{' ..' if len(shown) > 80 else ''}")
    return lines


def _names(names: Sequence[str]) -> str:
    return f"({', '.join(json.dumps(x) for x in names)},)"
