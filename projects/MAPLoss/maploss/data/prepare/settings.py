# SPDX-License-Identifier: Apache-2.0
"""Input size and schedule that fit a data set."""

import dataclasses

import numpy as np

from .summary import Summary

# Shorter side in pixels: an update of 16 images takes about a second on two cores.
_SMALLEST, _LARGEST, _STEP = 240, 800, 16
# After resizing 9 of 10 objects have at least this side: less than a cell of the features.
_LEAST_OBJECT = 16
# As Detectron2's 800 and 1333.
_LONGER = 1333 / 800
# Passes over the images; so few updates teach the head a new data set, so many are for a GPU.
_PASSES, _FEWEST, _MOST = 20, 300, 10_000
_MINIBATCH, _LEARNING_RATE = 16, 0.001
_EVALUATIONS = 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sides in pixels; periods in iterations."""

    min_size: int
    max_size: int
    minibatch: int
    iterations: int
    eval_period: int
    learning_rate: float


def choose_settings(train: Summary) -> Settings:
    """
    Settings for the training images of a data set.

    - Shorter side: 240, or more where objects are small: 9 of 10 keep 16 pixels. Never more than
      the images have, nor more than 800.
    - 16 images a minibatch, all where there are fewer; the learning rate falls with its root.
    - 20 passes over the images, at least 300 and at most 10,000 iterations.
    - Ten evaluations.

    Args:
        train: of all images to train on.
    """
    shorter = float(np.median(train.image_sides[:, 0]))
    wanted = float(_SMALLEST)
    if len(train.shares):
        wanted = max(wanted, _LEAST_OBJECT / float(np.percentile(train.shares, 10)))
    min_size = int(min(_LARGEST, np.ceil(wanted / _STEP) * _STEP, max(shorter, 32)))
    num_images = max(train.num_images - train.num_empty, 1)
    minibatch = min(_MINIBATCH, num_images)
    wanted_updates = round(_PASSES * num_images / minibatch / _EVALUATIONS) * _EVALUATIONS
    iterations = int(np.clip(wanted_updates, _FEWEST, _MOST))
    return Settings(
        min_size=min_size,
        max_size=round(min_size * _LONGER),
        minibatch=minibatch,
        iterations=iterations,
        eval_period=iterations // _EVALUATIONS,
        learning_rate=float(f"{_LEARNING_RATE * (minibatch / _MINIBATCH) ** 0.5:.2g}"),
    )
