# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from detectron2.structures import BoxMode
from maploss.utils.safe_pickle import load_arrays

RECONSTRUCT, (NDARRAY, *_), _ = np.zeros(1).__reduce__()
SCALAR = np.float32(1).__reduce__()[0]
FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]


class Calls:
    """Pickled: a call of a function, and the state that its result gets."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def load(content, protocol=4):
    return load_arrays(io.BytesIO(pickle.dumps(content, protocol=protocol)))


def make_dtype(text, order="<", flags=0):
    return Calls(np.dtype, (text, False, True), (3, order, None, None, None, -1, -1, flags))


def make_array(dtype, shape=(1,), data=b"\x41" * 8, version=1):
    return Calls(RECONSTRUCT, (NDARRAY, (0,), b"b"), (version, shape, dtype, False, data))


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(12, dtype=np.uint8)[::2],
    np.arange(3, dtype=">i4"),
    np.arange(3, dtype=np.float16),
    np.zeros((0, 4), np.float32),
    np.array(7.0),
    np.array([True, False]),
    np.array(["a", "bcd", ""]),
    np.array([b"a", b"bcd"]),
]


@pytest.mark.parametrize("modules", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_numbers_and_strings_are_what_was_pickled(protocol, modules):
    numbers = [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.str_("")]
    content = {"lists": [ARRAYS, tuple(ARRAYS)], "numbers": numbers}
    pickled = pickle.dumps(content, protocol=protocol)
    if protocol < 4:  # the names stand on lines of their own
        pickled = pickled.replace(b"cnumpy._core.", f"c{modules}.".encode())
    found = load_arrays(io.BytesIO(pickled))
    for given in found["lists"]:
        for array, expected in zip(given, ARRAYS, strict=True):
            # NumPy too turns bytes of another order, save in protocol 5.
            assert array.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
            assert array.shape == expected.shape
            assert array.tolist() == expected.tolist()
            assert array.flags.writeable
    assert found["numbers"] == numbers
    assert [type(x) for x in found["numbers"]] == [type(x) for x in numbers]


@pytest.mark.parametrize("text", ["O", "O8", "V8", "f4,O", "M8[s]", "c8", "<f4", "object", 8, None])
def test_arrays_of_anything_but_plain_values_are_refused(text):
    # Of objects with cleared flags, whose raw bytes would be taken for addresses.
    with pytest.raises(pickle.UnpicklingError, match="of plain values only"):
        load(make_array(make_dtype(text, order="|")))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (2,)},
        {"shape": (-1,)},
        {"shape": (-1, -1)},
        {"shape": (1.0,)},
        {"shape": [1]},
        {"shape": (2**62, 4)},
        {"data": b"\x41" * 9},
        {"data": ["\x41" * 8]},
        {"data": 8},
        {"version": 0},
        {"dtype": "f8"},
        {"dtype": make_dtype("f8", order="O")},
        {"dtype": make_dtype("S0"), "data": b"", "shape": (2**40,)},
    ],
)
def test_a_state_that_does_not_fit_together_is_refused(changes):
    arguments = {"dtype": make_dtype("f8")} | changes
    with pytest.raises(pickle.UnpicklingError, match="expected"):
        load(make_array(**arguments))
    shape, data = arguments.get("shape", (1,)), arguments.get("data", bytes(8))
    if "version" not in changes:
        with pytest.raises(pickle.UnpicklingError, match="expected"):
            load(Calls(FROMBUFFER, (data, arguments["dtype"], shape, "C")))


def test_of_the_state_of_a_dtype_only_the_byte_order_counts():
    state = (3, ">", None, ("a",), {"a": (make_dtype("f4"), 0)}, 99, 1, 27)
    data = np.array([1.5], ">f8").tobytes()
    array = load(make_array(Calls(np.dtype, ("f8", False, True), state), data=data))
    assert (array.dtype, array.tolist()) == (np.float64, [1.5])


def test_an_array_whose_rows_are_in_use_keeps_its_memory():
    array = pickle.dumps(make_array(make_dtype("f8")), protocol=2)
    state = pickle.dumps((1, (2,), make_dtype("f8"), False, bytes(16)), protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="one state"):
        load_arrays(io.BytesIO(array[:-1] + state[2:-1] + pickle.BUILD + pickle.STOP))


@pytest.mark.parametrize(
    "call",
    [
        Calls(SCALAR, (make_dtype("O", "|"), b"\x41" * 8)),
        Calls(SCALAR, (make_dtype("f8"), b"\x41" * 4)),
        Calls(SCALAR, ("f8", b"\x41" * 8)),
        Calls(FROMBUFFER, (b"\x41" * 8, make_dtype("O", "|"), (1,), "C")),
        Calls(np.ndarray, ((1,), "O")),
    ],
)
def test_no_function_of_numpy_is_called_with_what_a_pickle_says(call):
    with pytest.raises(pickle.UnpicklingError, match="expected"):
        load(call)


def test_a_pickle_changes_nothing_for_the_next_one():
    for function in (RECONSTRUCT, SCALAR, FROMBUFFER, np.dtype, np.ndarray):
        name = pickle.dumps(function, protocol=2)[2:-1]
        for attribute in ("__setstate__", "__defaults__", "__kwdefaults__", "x"):
            state = pickle.dumps((None, {attribute: ()}), protocol=2)[2:-1]
            with contextlib.suppress(pickle.UnpicklingError, TypeError, AttributeError):
                load_arrays(io.BytesIO(b"\x80\x02" + name + state + b"b."))
    assert load(np.arange(3.0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("mode", BoxMode)
def test_a_mode_of_boxes_that_an_early_python_3_11_pickled_by_name_is_its_number(mode, protocol):
    content = {"bbox_mode": Calls(getattr, (BoxMode, mode.name))}
    assert b"getattr" in pickle.dumps(content, protocol=protocol)
    (found,) = load(content, protocol).values()
    assert (type(found), found) == (int, mode.value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "args",
    [
        (BoxMode, "convert"),
        (BoxMode, "__class__"),
        (BoxMode, "function"),
        (BoxMode, b"XYXY_ABS"),
        (BoxMode, ["XYXY_ABS"]),
        (BoxMode.XYXY_ABS, "__class__"),
        (Calls(getattr, (BoxMode, "XYXY_ABS")), "__class__"),
        (OrderedDict, "fromkeys"),
        (OrderedDict, "XYXY_ABS"),
        (getattr, "XYXY_ABS"),
        (np.ndarray, "tofile"),
        (np.zeros(1), "tofile"),
        ("text", "format"),
        (int, "XYXY_ABS"),
    ],
)
def test_no_attribute_but_a_mode_of_boxes_can_be_had(args, protocol):
    with pytest.raises(pickle.UnpicklingError, match=r"getattr with a mode|plain containers only"):
        load(Calls(getattr, args), protocol)


@pytest.mark.parametrize("as_slots", [False, True])
def test_a_function_takes_no_state_by_which_it_would_pass_for_the_modes_of_boxes(as_slots):
    name = pickle.dumps(OrderedDict, protocol=2)[2:-1]
    state = {"function": BoxMode}
    state = pickle.dumps((None, state) if as_slots else state, protocol=2)[2:-1]
    with pytest.raises(pickle.UnpicklingError, match="no state for a function"):
        load_arrays(io.BytesIO(b"\x80\x02" + name + state + b"b."))
