"""The documents of the mailbox: how each is read, and what its fields may hold."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from fedtrain.core import canonical
from fedtrain.core.charges import Permit
from fedtrain.core.orders import DIGEST, ORDER_ID, Order, Progress, Result, parse_order_id
from fedtrain.errors import BadMailbox, LocalError
from fedtrain.storage.mailbox import entries

ORDER_FILE = "order.json"
CLAIM_FILE = "claim.json"
PERMIT_FILE = "permit.json"
RESULT_FILE = "result.json"
MODEL_FILE = "model.safetensors"
"""The public model beside an order."""

RESULT_FILES = ("update.bin", "model.bin")
"""The only names that a result's file may have."""

RESULT_BYTES_MAX = 8 << 20
"""A result may carry a layout, which names every tensor; the rest of it stays in `DOCUMENT_BYTES_MAX`."""

COUNT_MAX = 2**63 - 1

TRAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Claimer:
    """Who holds a claim."""

    trainer: str


@dataclass(frozen=True)
class Beat:
    """A heartbeat: `counter` moves while the trainer lives; `order` is what it works on or ""."""

    counter: int
    order: str


def check_order_id(order_id: str) -> None:
    """`LocalError` unless the caller passes an order's id; it becomes a path next."""
    if ORDER_ID.fullmatch(order_id) is None:
        raise LocalError(f"{order_id[:80]!r} is not an order's id, so it cannot name a mailbox entry")


def check_trainer_id(trainer_id: str) -> None:
    """`LocalError` unless the caller passes a trainer's id; it becomes a path next."""
    if TRAINER_ID.fullmatch(trainer_id) is None:
        raise LocalError(
            f"{trainer_id[:80]!r} is not a trainer's id: up to 64 letters, digits, dots, dashes, underscores"
        )


def order_ids(folder: int) -> list[str]:
    """Names of the folders in `folder` that are order ids, by run and round."""
    found = (name for name in entries.folder_names(folder) if ORDER_ID.fullmatch(name))
    return sorted(found, key=parse_order_id)


def is_stale(name: str, known: Container[str]) -> bool:
    """Whether an entry belongs to an order that is not in `known`; foreign names belong to none."""
    order_id = name.removesuffix(".json")
    return ORDER_ID.fullmatch(order_id) is not None and order_id not in known


def read_order(orders: int, order_id: str) -> Order:
    """The order in its folder; `BadMailbox` if it is unfit or another's."""
    with entries.open_folder(order_id, orders) as inside:
        order = entries.read_document(inside, ORDER_FILE, Order)
    _check_names(order.id, order_id)
    check_numbers(order, order_id)
    return order


def read_permit(order: int, order_id: str) -> Permit | None:
    """The permit in an order's folder, None if there is none; `BadMailbox` if it is unfit or another's."""
    try:
        permit = entries.read_document(order, PERMIT_FILE, Permit)
    except FileNotFoundError:
        return None
    _check_names(permit.order, order_id)
    check_numbers(permit, order_id)
    return permit


def read_result(results: int, order_id: str) -> Result:
    """The result in its folder with its file's presence and size checked; `BadMailbox` if unfit."""
    with entries.open_folder(order_id, results) as inside:
        result = entries.read_document(inside, RESULT_FILE, Result, bytes_max=RESULT_BYTES_MAX, alone=True)
        _check_names(result.order, order_id)
        check_numbers(result, order_id)
        if len(canonical.encode(dataclasses.replace(result, layout=""))) > entries.DOCUMENT_BYTES_MAX:
            raise BadMailbox(f"the result of {order_id} is larger than its layout excuses")
        if result.file:
            if result.file not in RESULT_FILES or DIGEST.fullmatch(result.digest) is None:
                raise BadMailbox(
                    f"the result of {order_id} names file {result.file[:80]!r} with digest "
                    f"{result.digest[:80]!r}; only {' or '.join(RESULT_FILES)} with a SHA-256 is taken"
                )
            entries.check_file(inside, result.file, result.size_bytes)
        elif result.digest or result.size_bytes:
            raise BadMailbox(f"the result of {order_id} has a digest or size but no file")
    return result


def read_progress(folder: int, order_id: str) -> Progress:
    """The progress report on this order."""
    progress = entries.read_document(folder, f"{order_id}.json", Progress)
    _check_names(progress.order, order_id)
    check_numbers(progress, order_id)
    return progress


def read_beat(folder: int, trainer_id: str) -> Beat:
    """The heartbeat of this trainer."""
    beat = entries.read_document(folder, f"{trainer_id}.json", Beat)
    if beat.order:
        _check_names(beat.order, beat.order)
    check_numbers(beat, trainer_id)
    return beat


def read_documents(folder: int, name: re.Pattern[str], read: Callable[[int, str], Any]) -> dict[str, Any]:
    """Name -> document of every `<name>.json` in `folder` that is fit; the others are left out."""
    found: dict[str, Any] = {}
    for entry in sorted(entries.names(folder)):
        stem = entry.removesuffix(".json")
        if stem != entry and name.fullmatch(stem):
            with contextlib.suppress(BadMailbox, FileNotFoundError):
                found[stem] = read(folder, stem)
    return found


def unfit(
    place: str, folder: int, name: re.Pattern[str], suffix: str, read: Callable[[int, str], Any]
) -> list[str]:
    """One sentence for each entry of `folder` that is no `<name><suffix>` or cannot be read."""
    found: list[str] = []
    for entry in sorted(entries.names(folder)):
        stem = entry.removesuffix(suffix)
        if not entry.endswith(suffix) or name.fullmatch(stem) is None:
            found.append(f"{place}: {entry[:80]!r} is no name that belongs here")
            continue
        try:
            read(folder, stem)
        except BadMailbox as error:
            found.append(f"{place}: {error}")
        except FileNotFoundError:
            # Gone since it was listed is healthy; a folder that is still there lacks its document.
            if entries.exists(folder, entry):
                found.append(f"{place}: {entry!r} is incomplete")
    return found


def _check_names(found: str, expected: str) -> None:
    if found != expected or ORDER_ID.fullmatch(found) is None:
        raise BadMailbox(f"mailbox entry {expected!r} speaks of order {found[:80]!r}")


def check_numbers(document: Any, name: str) -> None:
    """`BadMailbox` on a count below zero or beyond 64 bits, and on a number that is not finite.

    JSON has no infinity, but 1e999 reads as one, and no canonical document could hold it later.
    """
    for field in dataclasses.fields(document):
        value = getattr(document, field.name)
        if isinstance(value, int) and not 0 <= value <= COUNT_MAX:
            raise BadMailbox(f"mailbox entry {name!r}: {field.name} is outside 0 to 2^63 - 1")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadMailbox(f"mailbox entry {name!r}: {field.name} is not finite")
