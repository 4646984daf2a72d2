# SPDX-License-Identifier: Apache-2.0
"""The settings of the mAP loss, checked once, when they are made."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Sequence

from ..average_precision import AP_TYPES
from ..checks import check_choice
from ..steps.nms_ap_steps import TRANSITIVITIES
from ..steps.pseudo_gradient import ESTIMATORS, PAIRINGS
from .error_driven_gradient import (
    DEFAULT_TRANSITIVITY,
    ERROR_DRIVEN_TRANSITIVITIES,
    check_margin,
)

GRADIENTS = ("error_driven", *ESTIMATORS, "reinforce")
BOX_GRADIENTS = ("none", "error_driven", *ESTIMATORS)
# Fields that belong to some gradients: with the others they have no effect.
_GRADIENTS_OF_FIELD = {
    "transitivity": ("error_driven", *ESTIMATORS),
    "margin": ("error_driven",),
    "min_delta": ESTIMATORS,
    "pairing": ESTIMATORS,
    "num_samples": ("reinforce",),
    "noise": ("reinforce",),
}
_DEFAULT_TRANSITIVITIES = {
    "error_driven": DEFAULT_TRANSITIVITY,
    **dict.fromkeys(ESTIMATORS, "label_aware"),
}
# .5, .55, .., .95, each the float nearest to its decimal.
COCO_IOU_THRESHS = tuple(round(0.05 * i, 2) for i in range(10, 20))


@dataclasses.dataclass(frozen=True)
class MAPLossSettings:
    """
    What :func:`maploss.layers.map_loss` is to compute.

    Args:
        iou_threshs: overlaps, rising, each in [0, 1): a window over an object is right at those
            that its IoU exceeds, and mAP is the mean over them. A list will do too, and "coco" for
            .5, .55, .., .95.
        ap_type: how AP weighs recall: "area", "voc07" or "coco101".
        nms_thresh: IoU in [0, 1] over which windows suppress each other.
        gradient: "error_driven", see :func:`error_driven_gradient`; or "mee" or "sde", from the
            nearest steps (Henderson & Ferrari 2016, section 4.3), see :func:`pseudo_gradient`; or
            "reinforce", from sampled detections (Pinto et al. 2023), see
            :func:`~maploss.layers.map_loss.reinforce_gradient.reinforce_gradient`.
        transitivity: what the windows get that NMS suppresses. None: "object_aware" with
            "error_driven", "label_aware" with "mee" and "sde". Others: "none", "paper" and "exact"
            with "mee" and "sde", see :func:`nms_ap_steps`; "none" and "label_aware" with
            "error_driven", see :func:`error_driven_gradient`. None alone with "reinforce", whose
            samples go through NMS.
        box_gradient: by the overlap of boxes with their objects: "none"; "error_driven", see
            :func:`overlap_gradient_of_errors`; or "mee" or "sde", from the nearest overlaps at
            which AP changes, see :func:`overlap_step_gradient`.
        pooled: share in [0, 1] of AP of all classes in one list (AP-pool of Dave et al. 2021,
            arXiv 2102.01066), which makes scores of different classes comparable; the rest is mAP.
        grad_clip: bound of each element of the gradient, above 0; None for none.
        log_space: the loss is -log((mAP + eps) / (1 + eps)) if True, else 1 - mAP.
        eps: above 0, of log space.
        margin: of "error_driven", for scores or boxes, in units of score, 1e-6 to 1e6.
        min_delta: of "mee" and "sde", least distance to a step in units of score, above 0.
        pairing: of "mee" and "sde", "none" or "paired".
        num_samples: of "reinforce", 2 or more: each has the mean reward of the others as baseline.
        noise: of "reinforce", the standard deviation of scores in a sample, in units of score,
            above 0.

    Raises:
        ValueError, TypeError: a field out of its range, or one that belongs to another gradient
            than the one chosen.

    Example:
        >>> MAPLossSettings(iou_threshs=[0.5, 0.75]).iou_threshs
        (0.5, 0.75)
        >>> MAPLossSettings(min_delta=0.1)
        Traceback (most recent call last):
        ...
        ValueError: min_delta: expected 0.5, its default, with gradient 'error_driven', got 0.1
    """

    iou_threshs: tuple[float, ...] = (0.5,)
    ap_type: str = "area"
    nms_thresh: float = 0.3
    gradient: str = "error_driven"
    transitivity: str | None = None
    box_gradient: str = "none"
    pooled: float = 1.0
    grad_clip: float | None = None
    log_space: bool = True
    eps: float = 1.0
    margin: float = 1.0
    min_delta: float = 0.5
    pairing: str = "paired"
    num_samples: int = 2
    noise: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "iou_threshs", check_iou_threshs(self.iou_threshs))
        check_choice("ap_type", self.ap_type, AP_TYPES)
        check_choice("gradient", self.gradient, GRADIENTS)
        if self.transitivity is None:
            transitivity = _DEFAULT_TRANSITIVITIES.get(self.gradient)
            object.__setattr__(self, "transitivity", transitivity)
        elif self.gradient != "reinforce":
            levels = ERROR_DRIVEN_TRANSITIVITIES if self.is_error_driven else TRANSITIVITIES
            check_choice(f"transitivity of gradient {self.gradient!r}", self.transitivity, levels)
        check_choice("pairing", self.pairing, PAIRINGS)
        check_choice("box_gradient", self.box_gradient, BOX_GRADIENTS)
        if not 0 <= _number("pooled", self.pooled) <= 1:
            raise ValueError(f"pooled: expected a number in [0, 1], got {self.pooled}")
        if not isinstance(self.log_space, bool):
            raise TypeError(f"log_space: expected True or False, got {self.log_space!r}")
        if not 0 <= _number("nms_thresh", self.nms_thresh) <= 1:
            raise ValueError(f"nms_thresh: expected a number in [0, 1], got {self.nms_thresh}")
        check_margin(_number("margin", self.margin))
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int):
            raise TypeError(f"num_samples: expected a whole number, got {self.num_samples!r}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples: expected 2 or more, got {self.num_samples}")
        for name in ("min_delta", "eps", "noise", "grad_clip"):
            value = getattr(self, name)
            if name == "grad_clip" and value is None:
                continue
            if not 0 < _number(name, value) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {value}")
        self._check_choice_of_gradient()

    def _check_choice_of_gradient(self) -> None:
        """No field that has no effect is set: it would be ignored without a word."""
        cases = {
            name: f"gradient {self.gradient!r}"
            for name, gradients in _GRADIENTS_OF_FIELD.items()
            if self.gradient not in gradients
        }
        if self.box_gradient == "error_driven":
            cases.pop("margin", None)
        if not self.log_space:
            cases["eps"] = "log_space False"
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in cases and value != field.default:
                raise ValueError(
                    f"{field.name}: expected {field.default!r}, its default, with "
                    f"{cases[field.name]}, got {value!r}"
                )

    @property
    def is_error_driven(self) -> bool:
        """The gradient is made of all pairs in the wrong order, not of the nearest steps."""
        return self.gradient == "error_driven"

    @property
    def needs_errors(self) -> bool:
        """Some gradient is error-driven."""
        return "error_driven" in (self.gradient, self.box_gradient)

    @property
    def ranks_by_class(self) -> bool:
        """
        A process needs no more than the classes that it ranks: no steps, which follow from boxes
        that only their own process knows, and no list of all classes.
        """
        steps = self.is_made_of_steps or self.box_gradient in ESTIMATORS
        return not steps and not self.pooled

    @property
    def is_made_of_steps(self) -> bool:
        """The gradient is made of the nearest steps, which need all windows, not the kept ones."""
        return self.gradient in ESTIMATORS

    @property
    def includes_suppressed(self) -> bool:
        """Windows over objects that NMS suppresses are ranked too, each as if it were kept."""
        if self.is_made_of_steps:
            return False
        pushes_scores = self.is_error_driven and self.transitivity != "none"
        return pushes_scores or self.box_gradient == "error_driven"


def check_iou_threshs(threshs: Sequence[float] | str) -> tuple[float, ...]:
    """
    Overlaps, rising, each in [0, 1), as a tuple; "coco" stands for ten.

    Raises:
        ValueError, TypeError: others.

    Example:
        >>> check_iou_threshs([0.5, 0.75])
        (0.5, 0.75)
    """
    if isinstance(threshs, str) and threshs == "coco":
        return COCO_IOU_THRESHS
    if isinstance(threshs, str) or not isinstance(threshs, Sequence):
        raise TypeError(f"iou_threshs: expected a list of numbers or 'coco', got {threshs!r}")
    values = tuple(float(_number("iou_threshs", x)) for x in threshs)
    if not values:
        raise ValueError("iou_threshs: expected at least one overlap, got an empty list")
    outside = [x for x in values if not 0 <= x < 1]  # nan is not inside
    if outside:
        raise ValueError(f"iou_threshs: expected numbers in [0, 1), got {outside[0]:g}")
    falls = [(a, b) for a, b in itertools.pairwise(values) if a >= b]
    if falls:
        raise ValueError(
            f"iou_threshs: expected rising numbers, got {falls[0][0]:g} before {falls[0][1]:g}"
        )
    return values


def _number(name: str, value: object) -> float:
    """The value, if it is a number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)
