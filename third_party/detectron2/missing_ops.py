# SPDX-License-Identifier: Apache-2.0
"""Stands in for Detectron2's C++ extension, which this repackaging does not have."""


def get_compiler_version():
    """Asked for by the report on the environment that every training run logs."""
    return "none: Detectron2 repackaged without C++ ops"


def get_cuda_version():
    """As get_compiler_version."""
    return "none"


def has_cuda():
    """As get_compiler_version."""
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args, **kwargs):
        hint = " (COCOEvaluator does without it: use_fast_impl=False)" if "COCO" in name else ""
        raise NotImplementedError(
            f"detectron2._C.{name} is missing: Detectron2 0.5 from the package index comes without "
            f"its C++ ops{hint}. To get it, install the official Detectron2, which needs a C++ "
            "compiler: pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'"
        )

    return missing
