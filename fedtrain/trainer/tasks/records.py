"""Labelled records as arrays: what is trained on and what is held out, for tasks that classify."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedtrain.errors import ConfigError
from fedtrain.trainer.tables import Record, read_record

HELD_OUT_EVERY = 5

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Table:
    """The records of one or several sites, each of which holds out every fifth of its own.

    With groups, all records of every fifth group are held out, so that no person is on both sides.

    Args:
        parts: collections of documents, see `trainer.tables`.
        features, classes: what each record has to have.

    Attributes:
        train, held_out: (features `(n, features)`, labels `(n,)`).
        groups: of the training records `(n,)`, a number for each name.
    """

    def __init__(self, parts: Iterable[Iterable[bytes]], features: int, classes: int) -> None:
        train: list[Record] = []
        held_out: list[Record] = []
        groups: list[int] = []
        numbers: dict[tuple[int, str], int] = {}
        for place, part in enumerate(parts):
            own: dict[str, int] = {}
            for index, document in enumerate(part):
                record = read_record(document)
                _check(record, index, features, classes)
                turn = own.setdefault(record.group, len(own)) if record.group else index
                if turn % HELD_OUT_EVERY == HELD_OUT_EVERY - 1:
                    held_out.append(record)
                    continue
                train.append(record)
                name = record.group or f"record {index}"
                groups.append(numbers.setdefault((place, name), len(numbers)))
        if not train or not held_out:
            raise ConfigError(
                f"the data set has {len(train) + len(held_out)} records; at least {HELD_OUT_EVERY} are"
                " needed, to train on and to hold out",
                key="task.data",
            )
        self.train, self.held_out = _arrays(train), _arrays(held_out)
        self.groups = np.array(groups, np.int64)

    def batch(self, material: str, batch_size: int) -> npt.NDArray[np.int64]:
        """Numbers of training records, drawn uniformly by a hash of `material`."""
        digest = hashlib.shake_256(material.encode()).digest(8 * batch_size)
        drawn = np.frombuffer(digest, "<u8") % np.uint64(len(self.groups))
        return drawn.astype(np.int64)


def _check(record: Record, index: int, features: int, classes: int) -> None:
    if len(record.features) != features:
        raise ConfigError(
            f"record {index + 1} has {len(record.features)} features, the model takes {features}",
            key="task.model.features",
        )
    if record.label >= classes:
        raise ConfigError(
            f"record {index + 1} has a class beyond the model's: {classes} classes are 0 to {classes - 1}",
            key="task.model.classes",
        )


def _arrays(records: list[Record]) -> tuple[Features, Labels]:
    features = np.array([record.features for record in records], np.float32)
    return features, np.array([record.label for record in records], np.int64)
