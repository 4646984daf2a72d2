# SPDX-License-Identifier: Apache-2.0
"""
Data sets in a table: a row for each box, with file, box and class.

    filename,xmin,ymin,xmax,ymax,class
    a.jpg,68,315,286,480,WBC
    b.jpg,,,,,                          an image without objects

Columns are known by their heads, in any order; without heads they are those of this example. Boxes
are pixels, x2 and y2 exclusive, or, where no number of the file is above 1, shares of the image.
"""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .box_fitter import BoxFitter
from .image_files import EXTENSIONS, image_size
from .register_data_set import register_data_set
from .yolo import to_annotation, to_record

# Heads in lower case, without "_", "-" and spaces.
_FILE = (
    "filename",
    "file",
    "image",
    "imagename",
    "imagepath",
    "imageid",
    "path",
    "img",
    "filepath",
)
_CLASS = ("class", "label", "classname", "labelname", "category", "categoryname", "name", "object")
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
    ("x0", "y0", "x1", "y1"),
)
_SIDES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("xmin", "ymin", "w", "h"),
    ("left", "top", "width", "height"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
    ("bboxx", "bboxy", "bboxw", "bboxh"),
)
EXPECTED_HEADS = "filename, xmin, ymin, xmax, ymax, class"


class _Columns(NamedTuple):
    """Indices of the columns; has_sides: the box is x, y, width, height."""

    file: int
    box: tuple[int, ...]
    class_name: int
    has_sides: bool = False


class CSVBox(NamedTuple):
    """box: XYXY as in the file, None where the row says that the image has no object."""

    file: str
    class_name: str
    box: list[float] | None
    line: int


class CSVTable(NamedTuple):
    """is_relative: boxes are shares of the image."""

    boxes: list[CSVBox]
    is_relative: bool

    def class_names(self) -> list[str]:
        """Sorted; numbers by their value."""
        names = {x.class_name for x in self.boxes if x.box is not None}
        if all(x.isdigit() for x in names):
            return sorted(names, key=int)
        return sorted(names)

    def by_file(self) -> dict[str, list[CSVBox]]:
        """Objects of each image, in the file's order."""
        groups: dict[str, list[CSVBox]] = {}
        for row in self.boxes:
            groups.setdefault(row.file, []).extend([row] if row.box is not None else [])
        return groups


def read_csv(path: str) -> CSVTable:
    """
    All rows of a table; columns are divided by commas, semicolons or tabs.

    Raises:
        FileNotFoundError, ValueError: no such file, or a malformed row; the message begins with
            file and line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Table of boxes not found: {path}")
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path}: expected rows, got none")
    columns, has_heads = _find_columns(rows[0][1], f"{path}:{rows[0][0]}")
    boxes = [_parse(row, columns, path, line) for line, row in rows[has_heads:]]
    if not boxes:
        raise ValueError(f"{path}: expected rows below the heads, got none")
    largest = max((v for x in boxes if x.box is not None for v in x.box), default=2.0)
    return CSVTable(boxes, is_relative=largest <= 1.001)


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and fields of each row that is not blank."""
    with open(path, encoding="utf-8-sig", newline="") as f:
        try:
            first = f.readline()
            delimiter = max(",;\t", key=first.count)
            f.seek(0)
            reader = csv.reader(f, delimiter=delimiter)
            for row in reader:
                if any(x.strip() for x in row):
                    yield reader.line_num, [x.strip() for x in row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected a table in UTF-8 ({error})") from error


def _find_columns(row: list[str], where: str) -> tuple[_Columns, bool]:
    """By the heads, or those of a table without; whether there are heads."""
    heads = {
        "".join(x.lower().replace("_", " ").replace("-", " ").split()): i for i, x in enumerate(row)
    }
    file = next((heads[x] for x in _FILE if x in heads), None)
    class_name = next((heads[x] for x in _CLASS if x in heads and heads[x] != file), None)
    for has_sides, choices in ((False, _CORNERS), (True, _SIDES)):
        for names in choices:
            if file is not None and class_name is not None and all(x in heads for x in names):
                box = tuple(heads[x] for x in names)
                return _Columns(file, box, class_name, has_sides), True
    if len(row) == 6 and (all(map(_is_number, row[1:5])) or not any(row[1:])):
        return _Columns(0, (1, 2, 3, 4), 5), False
    raise ValueError(
        f"{where}: expected the heads {EXPECTED_HEADS} (or x1, y1, x2, y2; x, y, width, height), "
        f"got {', '.join(row)[:120]}"
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _parse(row: list[str], columns: _Columns, path: str, line: int) -> CSVBox:
    where = f"{path}:{line}"
    wanted = max(columns.file, *columns.box, columns.class_name)
    # Editors leave out what is empty at the end.
    row = row + [""] * (wanted + 1 - len(row))
    file, class_name = row[columns.file], row[columns.class_name]
    texts = [row[i] for i in columns.box]
    if not file:
        raise ValueError(f"{where}: expected the name of an image, got none")
    if not any(texts):
        return CSVBox(file, "", None, line)
    if not all(map(_is_number, texts)):
        raise ValueError(f"{where}: expected four numbers of a box, got {', '.join(texts)[:80]}")
    if not class_name:
        raise ValueError(f"{where}: expected a class, got none")
    x1, y1, x2, y2 = map(float, texts)
    return CSVBox(
        file,
        class_name,
        [x1, y1, x1 + x2, y1 + y2] if columns.has_sides else [x1, y1, x2, y2],
        line,
    )


def image_path(folder: str, file: str) -> str:
    """
    The file of an image that a table names by its path below `folder`, its name, or without ending.

    Args:
        folder: of the images.
        file: as in the table.
    """
    stems = dict.fromkeys(
        (os.path.join(folder, file), os.path.join(folder, os.path.basename(file)))
    )
    for path in stems:
        if os.path.isfile(path):
            return path
    for stem in stems:
        for ending in (*EXTENSIONS, *map(str.upper, EXTENSIONS)):
            if os.path.isfile(stem + ending):
                return stem + ending
    return os.path.join(folder, file)


def fitting_box(row: CSVBox, size: tuple[int, int], is_relative: bool) -> list[float]:
    """
    XYXY in pixels of an object, not clipped.

    Args:
        row: of the table; it has a box.
        size: width and height of the image in pixels.
        is_relative: the table's boxes are shares of the image.
    """
    if row.box is None:
        raise ValueError(f"line {row.line}: expected a box, got none")
    factors = [*size, *size] if is_relative else [1.0] * 4
    return [v * factor for v, factor in zip(row.box, factors, strict=True)]


def load_csv(path: str, image_root: str, class_names: Sequence[str]) -> list[dict]:
    """
    Dataset dicts of the images of a table, in its order.

    Boxes that reach outside by more than half a pixel are clipped, those of zero area dropped, with
    one warning that counts them.

    Args:
        path: of the table.
        image_root: folder of the images.
        class_names: in the order of their indices.

    Returns:
        Detectron2's dataset dicts; the id of an image is its name in the table.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_csv`; an unknown class.
        ImageError: an image that is missing or none.
    """
    table = read_csv(path)
    index_of = {name: i for i, name in enumerate(class_names)}
    fitter = BoxFitter()
    records = []
    for file, rows in table.by_file().items():
        image = image_path(image_root, file)
        size = image_size(image)
        annotations = []
        for row in rows:
            if row.class_name not in index_of:
                raise ValueError(
                    f"{path}:{row.line}: expected one of the classes {tuple(index_of)}, got "
                    f"{row.class_name!r}"
                )
            box = fitter.fit(fitting_box(row, size, table.is_relative), *size, file)
            if box is not None:
                annotations.append(to_annotation(index_of[row.class_name], box))
        records.append(to_record(image, file, size, annotations))
    fitter.warn(path)
    return records


def register_csv(
    name: str, path: str, image_root: str, class_names: Sequence[str], ap_type: str = "area"
) -> None:
    """
    Registers a table of boxes, in place of a data set of the same name; files are read later.

    Args:
        name: of the data set.
        path: of the table.
        image_root: folder of the images.
        class_names: in the order of their indices.
        ap_type: the AP that the data set is judged by.
    """
    register_data_set(
        name,
        lambda: load_csv(path, image_root, class_names),
        thing_classes=list(class_names),
        ap_type=ap_type,
        csv_table=(path, image_root),
    )
