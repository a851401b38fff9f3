"""Formats of records with numbers and a class: `csv` files, and the small data sets of scikit-learn.

A document is one record, as a line of ASCII: class, group, features, separated by commas. `record` and
`read_record` are each other's inverse; numbers keep every bit.

    csv            PATTERN[:label=COLUMN][:group=COLUMN]
                   UTF-8 with a header; every other column is a feature. The label is a whole number from
                   0, by default in the last column; a group is any text, such as a person's number.
    scikit-learn   NAME:SITE/SITES[:skew=S]
                   the part of site SITE (from 1) of `breast_cancer`, `digits`, `iris` or `wine`, which
                   come with the package and need no network. Each record is at exactly one site. With
                   skew 0 classes are spread evenly; with skew 1 each class has one home site.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import importlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtrain.errors import ConfigError, StorageError

BUNDLED = ("breast_cancer", "digits", "iris", "wine")
CLASSES_MAX = 1_000_000

_SHARE = re.compile(r"([a-z_]+):([1-9]\d{0,3})/([1-9]\d{0,3})(?::skew=(0|1|0?\.\d{1,6}|1\.0|0))?")
_COLUMN = re.compile(r":(label|group)=([^:]*)")


@dataclass(frozen=True)
class Record:
    """One record: its class from 0, the person or thing it belongs to ("" if unknown), its features."""

    label: int
    group: str
    features: tuple[float, ...]


def write_record(record: Record) -> bytes:
    """The record as a document."""
    return ",".join([str(record.label), record.group, *map(repr, record.features)]).encode()


def read_record(document: bytes) -> Record:
    """The record of a document; `ConfigError` where it is none."""
    try:
        label, group, *features = document.decode().split(",")
        return Record(int(label), group, tuple(map(float, features)))
    except ValueError as error:
        raise ConfigError(
            "a document is no record of numbers: use the format `csv` or `scikit-learn`", key="format"
        ) from error


def csv_records(patterns: tuple[str, ...], folder: Path) -> Iterator[bytes]:
    """Format `csv`: records of the matching files, file by file, sorted by path."""
    for pattern in patterns:
        columns = dict(_COLUMN.findall(pattern))
        plain = _COLUMN.sub("", pattern)
        # Not Path.glob: that one refuses absolute patterns.
        found = sorted(Path(path) for path in glob.glob(str(folder / plain), recursive=True))  # noqa: PTH207
        files = [path for path in found if path.is_file()]
        if not files:
            raise ConfigError(f"no file matches {str(folder / plain)!r}")
        for path in files:
            yield from _csv_file(path, columns)


def _csv_file(path: Path, columns: dict[str, str]) -> Iterator[bytes]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = csv.reader(lines, strict=True)
            header = next(rows, None)
            if not header:
                raise ConfigError(f"{path} is empty: the first row names the columns")
            label = _column(path, header, columns.get("label", header[-1]))
            group = _column(path, header, columns["group"]) if "group" in columns else None
            for row in rows:
                if row:
                    yield write_record(_csv_row(f"{path}, line {rows.line_num}", header, row, label, group))
    except OSError as error:
        raise StorageError(f"the data file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from error
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}: is no CSV ({error})") from error


def _column(path: Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        raise ConfigError(
            f"{path} has {header.count(name)} columns {name!r}; it has {', '.join(header)[:300]}"
        )
    return header.index(name)


def _csv_row(place: str, header: list[str], row: list[str], label: int, group: int | None) -> Record:
    # What stands in a cell may be a person's: messages name the column only.
    if len(row) != len(header):
        raise ConfigError(f"{place}: has {len(row)} values, and the header names {len(header)}")
    features = []
    for index, text in enumerate(row):
        if index in (label, group):
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{place}: the value of {header[index]!r} is not a finite number")
        features.append(value)
    kind = row[label].strip()
    if not (kind.isascii() and kind.isdigit()) or int(kind) >= CLASSES_MAX:
        raise ConfigError(f"{place}: the label {header[label]!r} is not a whole number from 0")
    name = "" if group is None else row[group].strip()
    if group is not None and (not name or "," in name or "\n" in name):
        raise ConfigError(f"{place}: the group {header[group]!r} is empty or holds a comma or a line break")
    return Record(int(kind), name, tuple(features))


def bundled_records(patterns: tuple[str, ...], folder: Path) -> Iterator[bytes]:
    """Format `scikit-learn`: a site's part of a data set of the package; `folder` plays no part."""
    for pattern in patterns:
        match = _SHARE.fullmatch(pattern)
        if match is None or int(match[2]) > int(match[3]) or match[1] not in BUNDLED:
            raise ConfigError(
                f"{pattern!r} is no part of a data set; write e.g. 'breast_cancer:2/5:skew=0.8' (part 2 of 5;"
                f" skew from 0 to 1) with one of {', '.join(BUNDLED)}"
            )
        labels, features = _bundled(match[1])
        homes = share(labels, int(match[3]), float(match[4] or 0), match[1])
        for label, values, home in zip(labels, features, homes, strict=True):
            if home == int(match[2]) - 1:
                yield write_record(Record(label, "", tuple(values)))


def _bundled(name: str) -> tuple[list[int], list[list[float]]]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ConfigError(
            "the format scikit-learn needs that package; install it with `pip install fedtrain[train]`"
        ) from error
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    return [int(label) for label in labels], features.tolist()


def share(labels: Sequence[int], sites: int, skew: float, name: str) -> list[int]:
    """The site, from 0, of each record of these classes.

    A record goes to its class's home with probability `skew` and anywhere with the rest, by a hash of
    its number. Class c of k has its home at site floor(c sites / k) or, where there are more sites than
    classes, is shared evenly by the sites that c is the nearest class of.
    """
    classes = max(labels) + 1
    homes: list[list[int]] = [[] for _ in range(classes)]
    for site in range(sites):
        homes[site * classes // sites].append(site)
    for label, own in enumerate(homes):
        if not own:
            own.append(label * sites // classes)
    found = []
    for index, label in enumerate(labels):
        digest = hashlib.sha256(f"{name} {index}".encode()).digest()
        chance = int.from_bytes(digest[:8], "little") / 2**64
        place = int.from_bytes(digest[8:16], "little")
        own = homes[label]
        found.append(own[place % len(own)] if chance < skew else place % sites)
    return found
