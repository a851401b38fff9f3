"""What a site is asked to do, and what it says it did: the two documents of a round.

An *order* travels coordinator -> agent -> trainer, a *result* travels back. Both are plain
values; tensors stay in files that the documents name by SHA-256 digest.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from fedtrain.errors import RemoteError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A run's or site's name: it becomes file names, URIs and log lines, so nothing else is allowed."""

DIGEST = re.compile(r"[0-9a-f]{64}")

ORDER_ID = re.compile(rf"({NAME.pattern})\.(\d{{1,9}})\.(\d{{1,9}})\.({NAME.pattern})")


class OrderKind(enum.StrEnum):
    """What the trainer is to do."""

    SEED = "seed"  # make the initial weights from the run's seed, and hand over the layout
    TRAIN = "train"  # local steps from the base version, an update back
    EVALUATE = "evaluate"  # the public model's loss on held-out data, nothing else


@dataclass(frozen=True)
class ModelRef:
    """A version of the public model: which one, and how to check and obtain it.

    `chain` lists what can be fetched, each as (version it leads to, blob digest, size in bytes):
    first the snapshot of `snapshot_version` (a whole model file), then deltas by rising version.
    The deltas may begin before the snapshot, so that a site which holds an older version need not
    fetch a whole model; a newcomer takes the snapshot and the deltas behind it.
    """

    version: int
    digest: str
    layout_digest: str
    snapshot_version: int
    chain: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Order:
    """One site's work in one attempt at one round.

    Attributes:
        id: `<run>.<round>.<attempt>.<site>`, see `order_id`.
        seed: the run's seed; every stream of chance derives from (run, seed, round, site, ...).
        model: the public model to start from; None for `OrderKind.SEED`.
        steps: inner steps to take; 0 unless training.
        evaluate: measure the public model on held-out data before training.
        parent: the order whose checkpoint (optimiser state, residual, data position) to continue,
            "" for a fresh start. The coordinator names the last one that it acknowledged, so a
            repeated order starts where the first attempt started.
        returned: orders whose updates did not count and go back into the residual.
        cohort: names of all sites invited to this attempt, sorted: the contract judges it.
        task: canonical JSON of the run's task section (`name`, `model`, `data`, `training`).
        codec: codec of the update, e.g. `int8`.
        block_elements: elements of the flat vector per block of the update file.
        patience_ms: without a sign of progress for so long, the site is given up.
    """

    id: str
    kind: OrderKind
    run: str
    round: int
    attempt: int
    site: str
    seed: int
    model: ModelRef | None
    steps: int
    evaluate: bool
    parent: str
    returned: tuple[str, ...]
    cohort: tuple[str, ...]
    task: str
    codec: str
    block_elements: int
    patience_ms: int


@dataclass(frozen=True)
class Result:
    """What the trainer hands back for an order.

    Attributes:
        failure: "" when the work was done, else the reason in words.
        file: name of the update (or model, for `seed`) file beside this document, "" if none.
        digest, size_bytes: of that file.
        weight: tokens or examples that the update was trained on; its weight in the mean.
        steps: inner steps really taken.
        norm: L2 norm of the decoded update.
        train_loss: mean loss of the inner steps, nats per token (per byte for byte models).
        eval_loss: loss of the *base* version on held-out data, None if not asked for.
        eval_count: tokens or examples behind `eval_loss`.
        layout: canonical JSON of the layout, for `seed` only.
        seconds: wall time of the work.
        within: with adaptive clipping, 1 or 0 plus noise: whether the update's norm was within the clip.
        notes: what a person should know, e.g. "checkpoint of the parent order was missing".
    """

    order: str
    failure: str = ""
    file: str = ""
    digest: str = ""
    size_bytes: int = 0
    weight: int = 0
    steps: int = 0
    norm: float = 0.0
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_count: int = 0
    layout: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
    within: float | None = None


@dataclass(frozen=True)
class Progress:
    """A trainer's sign of life for one order; `counter` only ever grows."""

    order: str
    counter: int
    steps: int = 0
    steps_total: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    phase: str = ""


def order_id(run: str, round_index: int, attempt: int, site: str) -> str:
    """The one name of an order. Names hold no dots, so it splits back without doubt."""
    return f"{run}.{round_index}.{attempt}.{site}"


def parse_order_id(text: str) -> tuple[str, int, int, str]:
    """(run, round, attempt, site) of an order's id; `RemoteError` if it is none."""
    match = ORDER_ID.fullmatch(text)
    if match is None:
        raise RemoteError(f"{text[:80]!r} is not an order's id (<run>.<round>.<attempt>.<site>)")
    run, round_index, attempt, site = match.groups()
    return run, int(round_index), int(attempt), site
