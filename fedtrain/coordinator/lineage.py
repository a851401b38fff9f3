"""Every published version's lineage, signed and kept: `state/lineage/<run>/<version>.json`.

A document is made from events as they pass (`core.lineage`), signed and written beside the event loop. One
that a crash or a full disk has kept from being written is made again at the next start, from the journal:
the same bytes. So the files are a convenience; the journal is the evidence.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import fedtrain
from fedtrain.core import canonical, events as ev, lineage as core
from fedtrain.core.effects import Aggregate
from fedtrain.core.lineage import Draft, Lineage, Place, Provenance, SignedLineage
from fedtrain.core.orders import parse_order_id
from fedtrain.core.state import ENDED, RunState, State
from fedtrain.errors import FedtrainError, IntegrityError, LocalError, NotFoundError, RemoteError
from fedtrain.storage.filesystem import disk_errors
from fedtrain.storage.journal import Journal
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey

T = TypeVar("T")

_log = logging.getLogger(__name__)


@functools.cache
def code_digest() -> str:
    """SHA-256, hex, over the names and contents of the installed package's own source files.

    Two installations of one digest run the same fedtrain; what it stands on (Python, numpy) is not in it.
    """
    package = Path(fedtrain.__file__).parent
    digest = hashlib.sha256()
    with disk_errors(f"read {package}"):
        for path in sorted(package.rglob("*.py")):
            name = path.relative_to(package).as_posix().encode()
            data = path.read_bytes()
            digest.update(b"%d %s %d\n" % (len(name), name, len(data)))
            digest.update(data)
    return digest.hexdigest()


class Lineages:
    """Makes, keeps and shows them. Called on the event loop's thread, but for `statement`.

    Args:
        folder: made when the first one is written.
        journal: open, by its writer.
        consortium, key: whose they are, and what signs them.
    """

    def __init__(self, folder: Path, journal: Journal, consortium: str, key: MessageKey) -> None:
        self._folder = folder
        self._journal = journal
        self._consortium = consortium
        self._key = key
        self._provenance = Provenance()
        self._known: dict[str, int] = {}
        self._newest: dict[str, Lineage] = {}
        # One thread: documents are written in the order of their versions, each behind its parent's.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lineage")

    def recover(self, state: State) -> None:
        """At a start: make what is missing, and take up what was told of orders that may still count."""
        self._known = {name: len(run.records) for name, run in state.runs.items()}
        missing = sorted(name for name, run in state.runs.items() if not self._is_whole(run))
        if missing:
            _log.info("lineage is made again from the journal: %s", ", ".join(missing))
            try:
                for lineage in core.rebuild(self._journal.read(), missing):
                    self._begin(self._keep, lineage)
            except FedtrainError as error:
                _log.error("the lineage of %s cannot be made: %s", ", ".join(missing), error)
        needed = frozenset[str]().union(*map(core.needed_orders, state.runs.values()))
        if needed:
            for row in self._journal.read(self._before(needed), core.EVIDENCE):
                event = canonical.decode(ev.EVENTS[row.kind], row.payload)
                if getattr(event, "order", "") in needed:
                    self._provenance.observe(event)

    def observe(self, events: Iterable[ev.Event]) -> None:
        """Take note of events, in the journal's order."""
        for event in events:
            self._provenance.observe(event)

    def plan(self, effect: Aggregate) -> None:
        """What the next version is made of."""
        self._provenance.plan(effect)

    def follow(self, state: State) -> None:
        """Write about the versions that the last events have published; nearly free if there is none."""
        for name, run in state.runs.items():
            known = self._known.get(name, 0)
            if len(run.records) == known:
                continue
            self._known[name] = len(run.records)
            for record in core.published(run, known):
                try:
                    draft = self._provenance.draft(state, name, record, self._place(name))
                except FedtrainError as error:
                    _log.error("%s: no lineage of version %s: %s", name, record.version, error)
                else:
                    self._begin(self._make, draft)
            if run.phase in ENDED:
                self._provenance.forget(run)
                self._begin(self._close_run, name)

    def statement(self, run: str, version: int) -> SignedLineage:
        """The kept document; waits for those that are being written.

        Raises `NotFoundError` if there is none, `IntegrityError` if the file was changed.
        """
        return self._writer.submit(self._kept, run, version).result()

    def close(self) -> None:
        """Returns when everything is written."""
        self._writer.shutdown()

    def _is_whole(self, run: RunState) -> bool:
        folder = self._folder / run.spec.run
        with disk_errors(f"look into {folder}"):
            there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return all(f"{record.version}.json" in there for record in core.published(run))

    def _before(self, needed: frozenset[str]) -> int:
        """A row before the first one that tells of these orders: the orders of a round are handed out
        behind the row of the version that they start from."""
        firsts: dict[str, int] = {}
        for order in needed:
            run, index, _, _ = parse_order_id(order)
            firsts[run] = min(index, firsts.get(run, index))
        try:
            return min(
                self.statement(run, index - 1).lineage.journal.sequence for run, index in firsts.items()
            )
        except FedtrainError:
            return 0  # of version 0, which nothing precedes, or of one whose document could not be made

    def _place(self, run: str) -> Place:
        row = self._journal.newest(run, core.PUBLISHING)
        if row is None:
            raise LocalError(f"the journal does not know of a version of {run}")
        return Place(row.sequence, row.hash)

    def _begin(self, work: Callable[[T], None], item: T) -> None:
        self._writer.submit(work, item).add_done_callback(_tell)

    # -- in the writer's thread -----------------------------------------------------------------------

    def _make(self, draft: Draft) -> None:
        parent = None if draft.base is None else self._parent(draft.alone.run, draft.base)
        self._keep(core.complete(draft, parent))

    def _parent(self, run: str, version: int) -> Lineage:
        newest = self._newest.get(run)
        if newest is not None and newest.version == version:
            return newest
        return self._kept(run, version).lineage

    def _keep(self, lineage: Lineage) -> None:
        """Not synced: one that is lost is made again."""
        self._newest[lineage.run] = lineage
        path = self._path(lineage.run, lineage.version)
        with disk_errors(f"keep the lineage in {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(canonical.encode(self._sign(lineage)))
            part.replace(path)

    def _sign(self, lineage: Lineage) -> SignedLineage:
        digest = canonical.digest(lineage)
        statement = statements.Lineage(self._consortium, lineage.run, lineage.version, digest)
        signature = statements.sign(statement, self._key).hex()
        return SignedLineage(self._consortium, lineage, self._key.key_id, signature)

    def _kept(self, run: str, version: int) -> SignedLineage:
        path = self._path(run, version)
        try:
            with disk_errors(f"read {path}"):
                data = path.read_bytes() if path.is_file() else b""
            if not data:
                raise NotFoundError(
                    f"there is no lineage of version {version} of {run}: has it been published?"
                )
            found = canonical.decode(SignedLineage, data)
        except RemoteError as error:
            raise IntegrityError(
                f"{path} was changed ({error}): delete it, and the next start makes it again"
            ) from error
        return found

    def _close_run(self, run: str) -> None:
        self._newest.pop(run, None)

    def _path(self, run: str, version: int) -> Path:
        return self._folder / run / f"{version}.json"


def _tell(done: Future[None]) -> None:
    """A document that cannot be written is no reason to stop: the next start makes it."""
    error = done.exception()
    if error is not None:
        _log.error("a lineage is not kept, the next start makes it: %s", error)
