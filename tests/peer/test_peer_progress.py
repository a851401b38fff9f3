"""Progress as heartbeats tell it, and results as they may be sent."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from peer_world import an_order

from fedtrain.core.messages import Evaluation, Failure
from fedtrain.core.orders import OrderKind, Progress, Result
from fedtrain.errors import BadMailbox
from fedtrain.peer.progress import LOG_EVERY_MS, ProgressBook
from fedtrain.peer.results import REASON_CHARACTERS_MAX, judge_result, reason_text, report
from fedtrain.storage.mailbox import Mailbox

ORDER = an_order(1)


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    made = Mailbox(tmp_path / "mailbox")
    made.create()
    return made


def test_a_counter_grows_with_progress_and_only_then(mailbox: Mailbox) -> None:
    """Equal reports are no progress; a new step is, even from a trainer that counts from the start."""
    book = ProgressBook(mailbox, 1000)
    (waiting,) = book.read([ORDER.id], 0, 0)
    assert book.read([ORDER.id], 0, 1) == (waiting,)
    (fetching,) = book.read([ORDER.id], 512, 2)
    assert waiting.counter < fetching.counter
    counters = [fetching.counter]
    for counter, steps in ((7, 3), (1, 0), (2, 1)):
        mailbox.report(Progress(ORDER.id, counter, steps, 5, 1.5, 100.0, "train"))
        (told,) = book.read([ORDER.id], 512, 3)
        assert (told.steps, told.steps_total, told.loss) == (steps, 5, 1.5)
        counters.append(told.counter)
    assert counters == sorted(set(counters))
    assert book.counter == counters[-1] > 1000


def test_a_queued_order_moves_with_the_one_before_it(mailbox: Mailbox) -> None:
    """While the trainer gets on with another run's order, this one moves; when it hangs, neither."""
    busy, queued = an_order(1), an_order(2)
    book = ProgressBook(mailbox, 0)
    both = [busy.id, queued.id]
    book.read(both, 0, 0)
    mailbox.report(Progress(busy.id, 1, 3, 5, 2.5, 100.0, "train"))
    moved = {told.order: told.counter for told in book.read(both, 0, 1)}
    mailbox.report(Progress(busy.id, 2, 4, 5, 2.5, 100.0, "train"))
    later = {told.order: told.counter for told in book.read(both, 0, 2)}
    assert all(later[name] > moved[name] for name in both)
    assert {told.order: told.counter for told in book.read(both, 0, 3)} == later


def test_only_orders_in_hand_are_told(mailbox: Mailbox) -> None:
    """A trainer's report on something else goes nowhere."""
    mailbox.report(Progress(an_order(9).id, 1))
    assert ProgressBook(mailbox, 0).read([], 0, 0) == ()


def test_a_hostile_report_is_made_to_fit(mailbox: Mailbox) -> None:
    """Escape codes, long phases and negative rates do not reach log or wire."""
    mailbox.report(Progress(ORDER.id, 1, 1, 2, None, -5.0, "\x1b[2J" + "x" * 900))
    (told,) = ProgressBook(mailbox, 0).read([ORDER.id], 0, 0)
    assert told.tokens_per_s == 0.0
    assert len(told.phase) <= 64 and "\x1b" not in told.phase


def test_the_log_shows_progress_now_and_then(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> None:
    """One line in ten seconds for an order at work, however often it is asked about."""
    caplog.set_level(logging.INFO, "fedtrain.peer")
    mailbox.report(Progress(ORDER.id, 1, 3, 5, 2.5, 100.0, "train"))
    book = ProgressBook(mailbox, 0)
    for moment in range(LOG_EVERY_MS, 3 * LOG_EVERY_MS, LOG_EVERY_MS // 10):
        book.read([ORDER.id], 0, moment)
    assert len(caplog.records) == 2
    assert "step 3 of 5, loss 2.5000, 100 tokens/s" in caplog.records[0].message


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (OrderKind.TRAIN, {"file": "model.bin"}),
        (OrderKind.SEED, {"file": "model.bin", "layout": ""}),
        (OrderKind.SEED, {"file": "update.bin", "layout": "{}"}),
        (OrderKind.EVALUATE, {"file": ""}),
        (OrderKind.EVALUATE, {"file": "update.bin", "eval_loss": 1.0}),
        (OrderKind.TRAIN, {"norm": -0.1}),
        (OrderKind.TRAIN, {"seconds": -0.1}),
    ],
)
def test_a_result_that_is_no_answer_is_refused(kind: OrderKind, changes: dict[str, object]) -> None:
    """Each kind of order has its own kind of answer."""
    fields: dict[str, object] = {"file": "update.bin", **changes}
    with pytest.raises(BadMailbox):
        judge_result(an_order(1, kind), Result(an_order(1, kind).id, **fields))  # type: ignore[arg-type]


def test_a_failure_carries_nothing_but_its_reason() -> None:
    """A file beside a failure is not sent by mistake."""
    found = judge_result(ORDER, Result(ORDER.id, "NaN\x07loss", "update.bin", "ab" * 32, 5, 9, 9, 1.0))
    assert found == Result(ORDER.id, "NaN\\x07loss")
    assert report(found) == Failure(ORDER.id, "NaN\\x07loss")


def test_an_answer_without_a_file_becomes_a_message() -> None:
    """A loss is told with its count; an answer with nothing in it is a failure."""
    assert report(Result(ORDER.id, eval_loss=1.5, eval_count=7)) == Evaluation(ORDER.id, 1.5, 7)
    assert report(Result(ORDER.id)) == Failure(ORDER.id, "no loss was measured")


@given(st.text(max_size=3000))
def test_reasons_are_one_short_printable_line(text: str) -> None:
    """Whatever a trainer writes, what leaves the site is a line that a terminal can show."""
    told = reason_text(text)
    assert told.isprintable() and len(told) <= REASON_CHARACTERS_MAX
