"""Labels of whole images: from the name of a photo's folder, from its file name, from a table, from an array's own labels.

They are rows of ``labels`` without a mask, written with the photo. Labels that come later, and masks, are `import_labels`' business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medspark.errors import BadRequest, Rejected
from medspark.tables.names import basename, folder
from medspark.tables.options import read_csv

ROLES = ("positive", "negative", "ignore", "extent")


@dataclass(frozen=True)
class Class:
    """One label of one image. ``value``: as an array or a table has it, None where there is only a name."""

    label: str
    value: str | None = None
    role: str = "positive"


@dataclass(frozen=True)
class Classes:
    """The options of ``ingest_photos`` that give labels.

    source : "none" | "folder"          folder: the name of the folder (or archive) that holds the file
    pattern : group 1 of the file name is the label, empty for none
    table : file name, path or folder/name -> its classes (``--labels``)
    names : value of an array's labels -> its class (``--classes``); a value that it does not list is class_<value>
    """

    source: str = "none"
    pattern: str = ""
    table: Mapping[str, tuple[Class, ...]] = field(default_factory=dict)
    names: Mapping[int, Class] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of all that changes labels, the contents of the files included."""
        said = (
            self.source,
            self.pattern,
            sorted(self.table.items(), key=lambda item: item[0]),
            sorted(self.names.items(), key=lambda item: item[0]),
        )
        return "" if self == Classes() else hashlib.sha256(repr(said).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def of_file(self, uri: str) -> tuple[Class, ...]:
        """The classes of all images of a file, each label once."""
        found: list[Class] = []
        if self.source == "folder" and folder(uri):
            found.append(Class(folder(uri)))
        if self.pattern:
            match = re.search(self.pattern, basename(uri))
            if match and match.group(1):
                found.append(Class(match.group(1)))
        path = uri.removeprefix("file://")
        for name in (path, uri, f"{folder(uri)}/{basename(uri)}", basename(uri)):
            if name in self.table:
                found += self.table[name]
                break
        return distinct(found)

    def of_value(self, value: int) -> Class:
        known = self.names.get(value)
        return Class(known.label, str(value), known.role) if known else Class(f"class_{value}", str(value))

    def of_labels(self, labels: np.ndarray) -> list[tuple[Class, ...]]:
        """The classes of each image of an array, from its (n,) values or words, or (n, m) findings of 0 and 1.

        Of several findings each column is a class: 1 is positive, 0 negative (it was looked for and is not there).
        Raises Rejected(LABEL_FORMAT) for values that are no whole numbers, and for findings that are neither 0 nor 1.
        """
        if labels.dtype.kind == "U":
            if labels.ndim != 1:
                raise Rejected("LABEL_FORMAT", "several words for one image")
            return [(Class(str(word)),) if word else () for word in labels.tolist()]
        with np.errstate(invalid="ignore"):
            if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
                raise Rejected("LABEL_FORMAT", "labels of images are whole numbers or words")
        values = labels.astype(np.int64)
        if values.ndim == 1:
            return [(self.of_value(value),) for value in values.tolist()]
        if not np.isin(values, (0, 1)).all():
            raise Rejected("LABEL_FORMAT", "several findings of one image are neither 0 nor 1")
        columns = [self.of_value(column) for column in range(values.shape[1])]
        return [
            tuple(Class(column.label, str(flag), column.role if flag else "negative") for column, flag in zip(columns, row, strict=True))
            for row in values.tolist()
        ]


def distinct(classes: Iterable[Class]) -> tuple[Class, ...]:
    """Each (label, role) once, the first stays."""
    return tuple({(one.label, one.role): one for one in reversed(list(classes))}.values())[::-1]


def read_classes(
    source: str = "none", pattern: str = "", table: str | Path | None = None, names: Mapping[Any, tuple[str, str]] | None = None
) -> Classes:
    """From the job's options; raises `BadRequest`. ``names``: value -> (label, role), as ``--classes`` gives them."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise BadRequest(f"--class-pattern: not a regular expression ({error})") from None
    if pattern and groups < 1:
        raise BadRequest("--class-pattern: needs a group, as in '^([A-Z]+)-'")
    named = {value: Class(label, None, role) for value, (label, role) in (names or {}).items() if isinstance(value, int)}
    return Classes(source, pattern, _read_table(table) if table is not None else {}, named)


def _read_table(path: str | Path) -> dict[str, tuple[Class, ...]]:
    columns, rows = read_csv("--labels", path)
    if not {"file", "label"} <= set(columns):
        raise BadRequest(f"--labels {path}: expected the columns file,label[,value][,role], got {','.join(columns)}")
    found: dict[str, list[Class]] = {}
    for line, row in enumerate(rows, start=2):
        file, label, role = ((row.get(name) or "").strip() for name in ("file", "label", "role"))
        if not file or not label:
            raise BadRequest(f"--labels {path} line {line}: file and label must both be given")
        if role and role not in ROLES:
            raise BadRequest(f"--labels {path} line {line}: role must be one of {', '.join(ROLES)}, got {role!r}")
        found.setdefault(file, []).append(Class(label, (row.get("value") or "").strip() or None, role or "positive"))
    return {file: tuple(classes) for file, classes in found.items()}
