"""The mailbox between agent and trainer, used as intended."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from fedtrain.core import canonical
from fedtrain.core.orders import order_id
from fedtrain.errors import ConfigError, LocalError, StorageError
from fedtrain.storage.mailbox import (
    MODEL_FILE,
    ClaimWatch,
    Mailbox,
    Order,
    OrderKind,
    Progress,
    Result,
)


def make_order(round_index: int = 1, site: str = "north") -> Order:
    return Order(
        id=order_id("run", round_index, 0, site),
        kind=OrderKind.TRAIN,
        run="run",
        round=round_index,
        attempt=0,
        site=site,
        seed=7,
        model=None,
        steps=10,
        evaluate=False,
        parent="",
        returned=(),
        cohort=("north", "south"),
        task="{}",
        codec="int8",
        block_elements=1 << 20,
        patience_ms=60_000,
    )


def make_result(order: Order, data: bytes = b"numbers") -> Result:
    return Result(
        order=order.id,
        file="update.bin",
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        weight=3,
        train_loss=1.5,
    )


def write(path: Path, data: bytes = b"numbers") -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    box = Mailbox(tmp_path / "mailbox")
    box.create()
    return box


def test_an_order_travels_to_the_trainer_and_its_result_back(mailbox: Mailbox, tmp_path: Path) -> None:
    """Post, claim, publish, take, discard: both documents and both files arrive as they were sent."""
    order = make_order()
    model = write(tmp_path / "model", b"weights")
    mailbox.post(order, model)
    claim = mailbox.claim("trainer-1")
    assert claim is not None
    assert claim.order == order
    assert (claim.folder / MODEL_FILE).read_bytes() == b"weights"
    result = make_result(order)
    assert mailbox.publish(result, write(mailbox.checkpoints / "out"))
    assert mailbox.results() == [order.id]
    taken, path = mailbox.take_result(order.id)
    assert taken == result
    assert path is not None
    assert path.read_bytes() == b"numbers"
    mailbox.discard(order.id)
    assert mailbox.results() == []
    assert not path.exists()
    assert model.read_bytes() == b"weights"


def test_a_result_without_a_file_has_no_path(mailbox: Mailbox) -> None:
    """A failure or an evaluation comes back as a document alone."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("t")
    result = Result(order=order.id, failure="out of memory")
    assert mailbox.publish(result, None)
    assert mailbox.take_result(order.id) == (result, None)


def test_posting_twice_changes_nothing_at_any_stage(mailbox: Mailbox) -> None:
    """An order that is posted, claimed or answered is not put before the trainers again."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.post(order, None)
    assert mailbox.claim("t") is not None
    mailbox.post(order, None)
    assert mailbox.claim("t") is None
    mailbox.publish(Result(order=order.id), None)
    mailbox.post(order, None)
    assert mailbox.claim("t") is None
    assert [e.name for e in mailbox.orders_folder.iterdir()] == []


def test_the_model_is_linked_and_copied_where_links_fail(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model costs no bytes on one file system, and is copied to another."""
    model = write(tmp_path / "model", b"weights")
    mailbox.post(make_order(1), model)
    assert model.stat().st_nlink == 2

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    mailbox.post(make_order(2), model)
    assert model.stat().st_nlink == 2
    assert (mailbox.orders_folder / make_order(2).id / MODEL_FILE).read_bytes() == b"weights"


def test_orders_are_claimed_oldest_round_first(mailbox: Mailbox) -> None:
    """Round 9 comes before round 10, although its name sorts behind."""
    for index in (10, 9, 11):
        mailbox.post(make_order(index), None)
    claims = [mailbox.claim("t") for _ in range(4)]
    assert [claim.order.round if claim else None for claim in claims] == [9, 10, 11, None]


def test_an_order_goes_to_exactly_one_of_many_trainers(mailbox: Mailbox) -> None:
    """Eight trainers that race for twenty orders get each order once."""
    for index in range(20):
        mailbox.post(make_order(index), None)
    got: list[str] = []

    def work(name: str) -> None:
        while (claim := mailbox.claim(name)) is not None:
            got.append(claim.order.id)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(make_order(i).id for i in range(20))
    assert mailbox.rubbish() == ()


def test_withdrawing_is_seen_by_the_trainer_at_work(mailbox: Mailbox) -> None:
    """A withdrawn order leaves no claim and no progress, and its result is not taken."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("t")
    mailbox.report(Progress(order.id, 1))
    assert not mailbox.withdrawn(order.id)
    mailbox.withdraw(order.id)
    assert mailbox.withdrawn(order.id)
    assert mailbox.progress() == {}
    out = write(mailbox.checkpoints / "out")
    assert not mailbox.publish(make_result(order), out)
    assert mailbox.results() == []
    assert not out.exists()


def test_an_expired_claim_goes_to_another_and_the_first_result_wins(mailbox: Mailbox) -> None:
    """Two trainers on one order: one result, the slower is told, and nobody works on it again."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("slow")
    mailbox.expire(order.id)
    assert not mailbox.withdrawn(order.id)
    assert mailbox.claim("quick") is not None
    assert mailbox.claims() == {order.id: ("quick", -1)}
    assert mailbox.publish(make_result(order, b"quick"), write(mailbox.checkpoints / "a", b"quick"))
    assert not mailbox.publish(make_result(order, b"slow"), write(mailbox.checkpoints / "b", b"slow"))
    _, path = mailbox.take_result(order.id)
    assert path is not None
    assert path.read_bytes() == b"quick"
    assert mailbox.claim("third") is None
    assert mailbox.claims() == {}


def test_a_slow_trainer_may_still_win_after_its_claim_expired(mailbox: Mailbox) -> None:
    """If nobody claimed the order again, the late result counts and the order is closed."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("slow")
    mailbox.expire(order.id)
    assert mailbox.publish(make_result(order), write(mailbox.checkpoints / "a"))
    assert mailbox.claim("other") is None
    assert mailbox.results() == [order.id]


def test_expiring_what_is_gone_is_fine(mailbox: Mailbox) -> None:
    """A result may come in just before the agent expires its claim."""
    mailbox.expire(make_order().id)
    assert mailbox.claim("t") is None


def test_heartbeats_and_progress_are_read_back(mailbox: Mailbox) -> None:
    """The newest heartbeat and progress of each trainer and order are what the agent sees."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("node-1.example_2")
    mailbox.beat("node-1.example_2", 1, "")
    mailbox.beat("node-1.example_2", 2, order.id)
    mailbox.report(Progress(order.id, 1, steps=1))
    mailbox.report(Progress(order.id, 2, steps=5, loss=2.5, phase="train"))
    assert mailbox.trainers() == {"node-1.example_2": (2, order.id)}
    assert mailbox.progress() == {order.id: Progress(order.id, 2, steps=5, loss=2.5, phase="train")}
    assert mailbox.claims() == {order.id: ("node-1.example_2", 2)}


def test_claims_expire_by_a_counter_that_stands_still() -> None:
    """Only a heartbeat that does not move for the whole lease expires; a new claimer starts afresh."""
    watch = ClaimWatch(lease_ms=100)
    assert watch.observe(0, {"a": ("t", 1), "b": ("u", 1)}) == ()
    assert watch.observe(60, {"a": ("t", 2), "b": ("u", 1)}) == ()
    assert watch.observe(100, {"a": ("t", 2), "b": ("u", 1)}) == ("b",)
    assert watch.observe(110, {"a": ("t", 2), "b": ("v", 1)}) == ()
    assert watch.observe(160, {"a": ("t", 2), "b": ("v", 1)}) == ("a",)
    assert watch.observe(170, {"b": ("v", 1)}) == ()
    assert watch.observe(180, {"a": ("t", 2), "b": ("v", 1)}) == ()


def test_a_claimer_that_died_before_its_first_heartbeat_expires() -> None:
    """A claim without claimer or counter is watched like any other."""
    watch = ClaimWatch(lease_ms=10)
    assert watch.observe(0, {"a": ("", -1)}) == ()
    assert watch.observe(10, {"a": ("", -1)}) == ("a",)


def test_sweeping_removes_what_yesterday_left(mailbox: Mailbox) -> None:
    """Orders, claims, results, progress and drafts of unknown orders go; known ones stay."""
    kept, claimed, answered, waiting = (make_order(i) for i in range(4))
    for order in (kept, claimed, answered, waiting):
        mailbox.post(order, None)
        mailbox.report(Progress(order.id, 1))
    mailbox.withdraw(kept.id)
    assert [mailbox.claim("t") is not None for _ in range(2)] == [True, True]
    mailbox.publish(Result(order=answered.id), None)
    mailbox.post(kept, None)
    mailbox.report(Progress(kept.id, 1))
    draft = mailbox.results_folder / f".{claimed.id}~0011aabb"
    draft.mkdir()
    mine = mailbox.results_folder / f".{kept.id}~0011aabb"
    mine.mkdir()
    mailbox.sweep({kept.id})
    left = {str(p.relative_to(mailbox.folder)) for p in mailbox.folder.glob("*/*")}
    assert left == {f"orders/{kept.id}", f"progress/{kept.id}.json", f"results/{mine.name}"}


def test_half_written_entries_are_not_seen(mailbox: Mailbox) -> None:
    """Whatever a killed process left under a temporary name is neither read nor called rubbish."""
    order = make_order()
    for place in ("orders", "claims", "results"):
        half = mailbox.folder / place / f".{order.id}~00"
        half.mkdir()
        (half / "order.json").write_bytes(canonical.encode(order)[:40])
    (mailbox.folder / "progress" / f".{order.id}.json~00").write_bytes(b'{"or')
    assert mailbox.claim("t") is None
    assert mailbox.results() == []
    assert mailbox.progress() == {}
    assert mailbox.claims() == {}
    assert mailbox.rubbish() == ()


def test_a_full_disk_leaves_no_half_order(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while an order is posted is said in words, and posting again works."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            mailbox.post(make_order(), None)
    mailbox.post(make_order(), None)
    assert mailbox.claim("t") is not None


def test_a_result_on_another_file_system_is_copied(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rename cannot reach the mailbox, the file is copied and the original removed."""
    order = make_order()
    mailbox.post(order, None)
    mailbox.claim("t")
    out = write(mailbox.checkpoints / "out")
    rename = os.rename

    def across(source: object, target: object, **folders: int) -> None:
        if source == out:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **folders)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "rename", across)
    assert mailbox.publish(make_result(order), out)
    assert not out.exists()
    _, path = mailbox.take_result(order.id)
    assert path is not None
    assert path.read_bytes() == b"numbers"


def test_our_own_wrong_names_are_our_bug(mailbox: Mailbox, tmp_path: Path) -> None:
    """A caller that passes no order id, trainer id or file name is stopped before any path is made."""
    for bad in ("../x", "", "a.1.2", "run.1.0.north\n", "run.1.0.north/../../x", "x" * 10_000, "run\0.1.0.a"):
        for call in (
            mailbox.withdraw,
            mailbox.withdrawn,
            mailbox.take_result,
            mailbox.discard,
            mailbox.expire,
        ):
            with pytest.raises(LocalError):
                call(bad)
        with pytest.raises(LocalError):
            mailbox.post(dataclasses.replace(make_order(), id=bad), None)
    for bad in ("../x", "", ".hidden", "a/b", "x" * 65, "é"):
        with pytest.raises(LocalError):
            mailbox.claim(bad)
        with pytest.raises(LocalError):
            mailbox.beat(bad, 1, "")
    named = dataclasses.replace(make_result(make_order()), file="../../key.pem")
    with pytest.raises(LocalError):
        mailbox.publish(named, tmp_path / "x")


def test_a_missing_mailbox_is_said_in_words(tmp_path: Path) -> None:
    """A folder that does not exist, or is a file, ends in a sentence that names it."""
    with pytest.raises(StorageError, match=r"nowhere.*check that the folder exists"):
        Mailbox(tmp_path / "nowhere").results()
    (tmp_path / "box").mkdir()
    write(tmp_path / "box" / "orders")
    with pytest.raises(ConfigError, match="orders: is not a folder"):
        Mailbox(tmp_path / "box").create()
