"""Signed lineage on the coordinator's disk: as the journal tells it, whatever was lost in between."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedtrain.coordinator import lineage as module
from fedtrain.coordinator.lineage import Lineages, code_digest
from fedtrain.core import canonical, effects as fx, events as ev, lineage as core
from fedtrain.core.driver import entry_of
from fedtrain.core.lineage import Lineage, SignedLineage
from fedtrain.core.orders import Order
from fedtrain.core.state import State
from fedtrain.core.transitions import step
from fedtrain.core.uploads import seat_of
from fedtrain.errors import BadSignature, IntegrityError, NotFoundError
from fedtrain.storage.journal import Journal
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey
from fedtrain.trust.lineage import check_contributors, check_statement

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from restart_time import Play

KEY = MessageKey.generate()
SITE_KEY = MessageKey.generate()
"""Of all sites: who is who does not matter here."""

NUM_EVENTS = 260


class Book:
    """A journal and its lineages, fed as the hub feeds them."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal.open(folder / "journal.db")
        self.lineages = Lineages(folder / "lineage", self.journal, "test", KEY)
        self.state = State()
        for row in self.journal.read():
            self.state, _ = step(self.state, canonical.decode(ev.EVENTS[row.kind], row.payload))
        self.lineages.recover(self.state)

    def submit(self, event: ev.Event) -> None:
        self.lineages.observe([event])
        self.journal.append([entry_of(event)])
        self.state, effects = step(self.state, event)
        for effect in effects:
            if isinstance(effect, fx.Aggregate):
                self.lineages.plan(effect)
        self.lineages.follow(self.state)

    def boot(self) -> None:
        self.submit(ev.Booted(self.state.now_ms, self.state.epoch + 1, "", "1.1", "c0de"))

    def close(self) -> None:
        self.lineages.close()
        self.journal.close()


def life() -> Iterator[ev.Event]:
    """Events of a coordinator, in which sites sign what they say."""
    state = State()
    for event in itertools.islice(Play(State(), 1_700_000_000_000).events(), NUM_EVENTS):
        match event:
            case ev.MemberEnrolled():
                event = replace(event, message_key=SITE_KEY.public, organisation=f"of {event.name}")
            case ev.ConsentGiven():
                event = agreed(state, event)
            case ev.UpdateStored():
                commit = statements.Commit(
                    event.order.split(".")[0],
                    event.order,
                    event.blob,
                    event.size_bytes,
                    event.weight,
                    event.steps,
                )
                event = replace(event, signature=statements.sign(commit, SITE_KEY).hex())
        state, _ = step(state, event)
        yield event


def agreed(state: State, event: ev.ConsentGiven) -> ev.ConsentGiven:
    found = seat_of(state.runs[event.order.split(".")[0]], event.order)
    order: Order = found[1].order if found else pytest.fail(f"{event.order} is not out")
    agreement = statements.Agreement(order.id, canonical.digest(order), True, (), "ab" * 32)
    return replace(event, contract="ab" * 32, signature=statements.sign(agreement, SITE_KEY).hex())


def told(folder: Path) -> dict[str, list[Lineage]]:
    """run -> what an auditor makes of the journal."""
    book = Journal.open(folder / "journal.db", writer=False)
    runs = {row.run for row in book.read() if row.run}
    found = {run: list(core.rebuild(book.read(), [run])) for run in runs}
    book.close()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("lineage/*/*.json"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A life that was written down without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    book = Book(folder)
    for event in life():
        book.submit(event)
    book.close()
    return folder


def test_the_files_say_what_the_journal_says(folder: Path) -> None:
    """One signed file for each published version, equal to what is made from the journal alone."""
    documents = told(folder)
    assert len(files(folder)) == sum(map(len, documents.values())) > 5
    for run, expected in documents.items():
        for document in expected:
            data = (folder / "lineage" / run / f"{document.version}.json").read_bytes()
            signed = canonical.decode(SignedLineage, data)
            assert signed.lineage == document
            check_statement(signed, KEY.public)


def test_all_signatures_in_a_document_hold(folder: Path) -> None:
    """Commits and consents verify under the keys that the document names; a changed number does not."""
    (run,) = list(told(folder))[:1]
    orders: dict[str, str] = {}
    book = Journal.open(folder / "journal.db", writer=False)
    newest = list(core.rebuild(book.read(), [run], orders))[-1]
    book.close()
    count = len(newest.contributors)
    assert count > 1 and check_contributors(newest, orders) == (count, count)
    first, *others = newest.contributors
    heavier = replace(newest, contributors=(replace(first, weight=first.weight + 1), *others))
    with pytest.raises(BadSignature, match=f"the commit of {first.site}"):
        check_contributors(heavier)
    other = replace(newest, contributors=(replace(first, contract="cd" * 32), *others))
    with pytest.raises(BadSignature, match=f"the consent of {first.site}"):
        check_contributors(other, orders)
    spec = replace(newest.configuration, seed=newest.configuration.seed + 1)
    with pytest.raises(IntegrityError, match="configuration"):
        check_contributors(replace(newest, configuration=spec))
    signed = SignedLineage("test", heavier, KEY.key_id, "00" * 64)
    with pytest.raises(BadSignature):
        check_statement(signed, KEY.public)


@pytest.mark.parametrize("places", [(60,), (97, 98, 99), (120, 200), (29, 31, 37, 41, 43, 47, 53, 59)])
def test_restarts_change_no_document(folder: Path, tmp_path: Path, places: tuple[int, ...]) -> None:
    """A coordinator that is stopped at any row goes on with what open rounds had told; nothing differs but
    what the restarts themselves are."""
    book = Book(tmp_path)
    for number, event in enumerate(life()):
        if number in places:
            book.close()
            book = Book(tmp_path)
        book.submit(event)
    book.close()
    assert files(tmp_path) == files(folder)


def test_lost_files_are_made_again(folder: Path, tmp_path: Path) -> None:
    """Whatever a crash kept from being written is there after the next start: the same bytes."""
    book = Book(tmp_path)
    for event in life():
        book.submit(event)
    book.close()
    for name in list(files(tmp_path))[1::2]:
        (tmp_path / name).unlink()
    book = Book(tmp_path)
    book.close()
    assert files(tmp_path) == files(folder)


def test_a_changed_or_missing_file_is_told(folder: Path) -> None:
    """A version that was never published has no lineage; a file that was edited is not shown as one."""
    book = Book(folder)
    run = next(iter(told(folder)))
    try:
        assert book.lineages.statement(run, 0).lineage.version == 0
        with pytest.raises(NotFoundError, match="version 99"):
            book.lineages.statement(run, 99)
        path = folder / "lineage" / run / "1.json"
        before = path.read_bytes()
        path.write_bytes(before[:-5])
        with pytest.raises(IntegrityError, match=r"1\.json was changed"):
            book.lineages.statement(run, 1)
        path.write_bytes(before)
    finally:
        book.close()


def test_a_publication_reads_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a publication costs does not grow with the journal: it looks up its own row and reads no other."""
    book = Book(tmp_path)
    reads: list[int] = []
    monkeypatch.setattr(Journal, "read", lambda *_: reads.append(1))
    for event in life():
        book.submit(event)
    book.close()
    assert reads == [] and len(files(tmp_path)) > 5


def test_the_code_digest_is_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same at each asking, and another one when a source file is another."""
    assert code_digest() == code_digest() and len(code_digest()) == 64
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    monkeypatch.setattr(module.fedtrain, "__file__", str(package / "__init__.py"))
    before = code_digest.__wrapped__()
    (package / "__init__.py").write_text("one = 2\n")
    assert code_digest.__wrapped__() != before
