# SPDX-License-Identifier: Apache-2.0
"""Pickles of others (Detectron2's weights and windows), read without running code."""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from detectron2.structures import BoxMode


def load_arrays(file: IO[bytes]) -> Any:
    """
    What a pickle holds, made of NumPy's arrays, lists, dictionaries, numbers and strings only.

    Arrays are of numbers, truth values or strings. None of NumPy's own functions for pickles is
    called with what the pickle says: those trust it, and it could make an array of addresses.

    Raises:
        pickle.UnpicklingError: it asks for something else. Bytes that are no pickle can raise
            almost anything.
    """
    return _Unpickler(file, encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
    """A pickle can ask for any function to be called: it gets these."""

    def find_class(self, module: str, name: str) -> Callable:
        known = _NUMPY.get(name) if module in _NUMPY_MODULES else _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(
                f"expected arrays and plain containers only, got {module}.{name}"
            )
        return _Function(known)


class _Function:
    """A function for a pickle, which could set the attributes of what it gets."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *args: object) -> Any:
        return self.function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("expected no state for a function")


def _box_mode(owner: object, name: object) -> int:
    """`getattr(BoxMode, "XYXY_ABS")`, as the first Pythons 3.11 pickle it; no other attribute."""
    is_box_mode = isinstance(owner, _Function) and owner.function is _KNOWN[_BOX_MODE]
    if not is_box_mode or not isinstance(name, str) or name not in BoxMode.__members__:
        raise pickle.UnpicklingError("expected getattr with a mode of boxes only")
    return int(BoxMode[name])


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 has them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode(encoding)


class _DType:
    """Stands for a dtype of plain values; `numpy` is the real one."""

    def __init__(self, text: str, *_: object) -> None:
        if not isinstance(text, str) or not re.fullmatch(r"[biufSU][0-9]{1,9}", text):
            raise pickle.UnpicklingError(f"expected arrays of plain values only, got {text!r}")
        self.numpy = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]  # the other entries follow from the name, or are of other kinds of arrays
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"expected the order of bytes, got {order!r}")
        self.numpy = self.numpy.newbyteorder(order)


class _Array(np.ndarray):
    """An array that believes its pickle only what fits together, and only once."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        is_known = version == 1 and isinstance(dtype, _DType) and isinstance(shape, tuple)
        if not is_known or not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("expected an array of plain values in one piece")
        if not all(type(x) is int and x >= 0 for x in shape) or not dtype.numpy.itemsize:
            raise pickle.UnpicklingError(f"expected an array's shape, got {shape} {dtype.numpy}")
        if len(data) != math.prod(shape) * dtype.numpy.itemsize:
            raise pickle.UnpicklingError(
                f"expected an array {shape} of {dtype.numpy}, got {len(data)} bytes"
            )
        if self.size:  # its rows may be in use
            raise pickle.UnpicklingError("expected one state for an array, got another")
        state = (1, shape, dtype.numpy, bool(is_fortran), bytes(data))
        # NumPy refuses the np.bool that its stub asks for.
        super().__setstate__(state)  # type: ignore[arg-type]


def _reconstruct(*_: object) -> _Array:
    """An empty array, whose state comes after it."""
    return np.ndarray.__new__(_Array, 0, np.int8)


def _frombuffer(
    data: bytes, dtype: _DType, shape: tuple, order: str, axes: tuple | None = None
) -> np.ndarray:
    """An array as protocol 5 has it."""
    array = _reconstruct()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array if axes is None else array.transpose(axes)


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    if isinstance(dtype, _DType) and not dtype.numpy.itemsize:
        return dtype.numpy.type()  # an empty string
    return _frombuffer(data, dtype, (), "C").flat[0]


def _no_call(*_: object) -> None:
    raise pickle.UnpicklingError("expected arrays out of their bytes only")


# NumPy 1 and 2 have the same modules by other names.
_NUMPY_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy.core.numeric",
    "numpy._core.multiarray",
    "numpy._core.numeric",
}
_NUMPY: dict[str, Callable] = {
    "_reconstruct": _reconstruct,
    "_frombuffer": _frombuffer,
    "ndarray": _no_call,  # only names the class to reconstruct
    "dtype": _DType,
    "scalar": _scalar,
}
_BOX_MODE = ("detectron2.structures.boxes", "BoxMode")
_KNOWN: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # as protocol 2 has none
    ("builtins", "list"): list,
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "getattr"): _box_mode,
    ("builtins", "getattr"): _box_mode,
    _BOX_MODE: int,
}
