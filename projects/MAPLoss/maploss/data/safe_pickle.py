# SPDX-License-Identifier: Apache-2.0
"""Pickles of others (Detectron2's weights and windows), read without running code."""

import pickle
from collections import OrderedDict
from typing import IO, Any


def load_arrays(file: IO[bytes]) -> Any:
    """
    What a pickle holds, made of NumPy's arrays, lists, dictionaries, numbers and strings only.

    Raises:
        pickle.UnpicklingError: it asks for something else. Bytes that are no pickle can raise
            almost anything.
    """
    return _Unpickler(file, encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
    """A pickle can ask for any function to be called: it gets these."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in _NUMPY_MODULES and name in _NUMPY_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"expected arrays and plain containers only, got {module}.{name}"
        )


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 has them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode(encoding)


# NumPy 1 and 2 have the same modules by other names.
_NUMPY_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy.core.numeric",
    "numpy._core.multiarray",
    "numpy._core.numeric",
}
_NUMPY_NAMES = {"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"}
_KNOWN = {
    ("_codecs", "encode"): _encode,
    ("builtins", "list"): list,
    ("collections", "OrderedDict"): OrderedDict,
    # A number, not the class, whose attributes a pickle could set.
    ("detectron2.structures.boxes", "BoxMode"): int,
}
