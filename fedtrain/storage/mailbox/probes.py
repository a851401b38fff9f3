"""Questions about a trainer's surroundings, and its answers: which walls stand, and what the data holds.

    probes/<id>.json      a question                 written by the agent
    findings/<id>.json    what a trainer found       written by a trainer

The agent must not see the data and cannot see the trainer's world, so it asks. Both documents are
read with the suspicion that the whole mailbox is read with; an answer is a claim of the trainer, and
what the agent can measure itself it measures itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedtrain.errors import BadMailbox, LocalError
from fedtrain.storage.mailbox import entries
from fedtrain.storage.mailbox.documents import TRAINER_ID, check_numbers

PROBE_ID = re.compile(r"[0-9a-f]{16}")

ITEMS_MAX = 256
"""Of any list or mapping in these documents."""

TEXT_MAX = 4096
"""Characters of any text: paths have fewer."""

TASK_MAX = 200_000
"""Characters of a task section: it fits into an order's document, and so into a probe's."""


@dataclass(frozen=True)
class Probe:
    """What the agent asks.

    Attributes:
        addresses: numeric `host:port`, to be tried by TCP: none of them should answer.
        sockets: Unix sockets that exist where the agent lives, an abstract one with a leading `@`.
        secrets: folder of the agent's keys, which the trainer should not be able to read.
        count_s: seconds that may be spent on counting each data set; 0 to count nothing.
        task: a task section, whose data set's units are to be counted; "" for none.
        unit: `record` or `group`, as the task sees them.
    """

    id: str
    addresses: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    secrets: str = ""
    count_s: int = 0
    task: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Count:
    """What a data set holds, as the task's own reader sees it.

    Attributes:
        task: of those that may read it, the one that sees most in it; "" where none may.
        records: documents that are not empty; `size_bytes` of them.
        examples: what the task counts as its weight; bytes for a task that does not say.
        whole: False if the time was over before the end, so that there is more.
        failure: why it cannot be read, "" if it can.
    """

    task: str = ""
    records: int = 0
    size_bytes: int = 0
    examples: int = 0
    whole: bool = True
    failure: str = ""


@dataclass(frozen=True)
class Finding:
    """What a trainer found. Lists are empty where nothing is open.

    Attributes:
        uid: user id of the trainer as the kernel tells it, inside its own user namespace.
        capabilities: effective ones, a bit each.
        no_new_privileges: whether no program that it starts can gain any.
        interfaces: network interfaces that are up, the loopback left out.
        answered: addresses of the probe at which something answered, each with what it did.
        sockets: Unix sockets outside the mailbox that accepted a connection.
        secrets: names in the agent's folder that could be opened.
        tasks: installed ones.
        counts: data set -> what it holds.
        units: of the probe's task on its data set; `units_failure`: why they cannot be counted, "" if they
            can.
    """

    probe: str
    trainer: str
    version: str
    uid: int
    capabilities: int
    no_new_privileges: bool
    interfaces: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    counts: Mapping[str, Count] = field(default_factory=dict)
    units: int = 0
    units_failure: str = ""


def check_probe_id(probe_id: str) -> None:
    """`LocalError` unless the caller passes a probe's id; it becomes a path next."""
    if PROBE_ID.fullmatch(probe_id) is None:
        raise LocalError(f"{probe_id[:80]!r} is not a probe's id: sixteen hexadecimal digits")


def read_probe(folder: int, probe_id: str) -> Probe:
    """The question; `BadMailbox` if it is unfit or another's."""
    probe = entries.read_document(folder, f"{probe_id}.json", Probe)
    _check(probe, probe_id, probe.id)
    return probe


def read_finding(folder: int, probe_id: str) -> Finding:
    """The answer to this question; `BadMailbox` if it is unfit or another's."""
    finding = entries.read_document(folder, f"{probe_id}.json", Finding, alone=True)
    _check(finding, probe_id, finding.probe)
    if TRAINER_ID.fullmatch(finding.trainer) is None:
        raise BadMailbox(f"mailbox entry {probe_id!r} is signed by no trainer: {finding.trainer[:80]!r}")
    for name, count in finding.counts.items():
        _check(count, probe_id, probe_id)
        _check_text(name, probe_id)
    return finding


def _check(document: Probe | Finding | Count, expected: str, found: str) -> None:
    if found != expected:
        raise BadMailbox(f"mailbox entry {expected!r} speaks of probe {found[:80]!r}")
    check_numbers(document, expected)
    for part in dataclasses.fields(document):
        value = getattr(document, part.name)
        if isinstance(value, str):
            _check_text(value, expected, TASK_MAX if part.name == "task" else TEXT_MAX)
        elif isinstance(value, (tuple, Mapping)):
            if len(value) > ITEMS_MAX:
                raise BadMailbox(f"mailbox entry {expected!r}: {part.name} has {len(value)} items")
            for item in value:
                _check_text(item, expected)


def _check_text(text: str, name: str, most: int = TEXT_MAX) -> None:
    if len(text) > most or "\0" in text:
        raise BadMailbox(f"mailbox entry {name!r} holds a text that is too long, or a zero byte")
