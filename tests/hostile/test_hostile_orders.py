"""Who speaks of which order: stale, replayed, unknown, foreign, two stories of one (rows 19-24, 41-43)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import pytest
from hostile_world import Arena, Refusal, arena_in, case, raw, rows_allowed

from fedtrain.core import canonical, messages as msg
from fedtrain.core.allowance import REFUSALS
from fedtrain.core.orders import order_id
from fedtrain.errors import (
    BadSignature,
    ConfigError,
    Equivocation,
    FedtrainError,
    NotFoundError,
    OfferAgain,
    RemoteError,
    StaleRound,
    UnknownSite,
)
from fedtrain.storage.chain import Row
from fedtrain.trust import statements
from fedtrain.wire.calls import call
from fedtrain.wire.chunks import frame

DIGEST = "ab" * 32


NOT_ASKED_FOR: list[tuple[str, type[FedtrainError], str]] = [
    ("tiny.1.7.mallory", StaleRound, "over"),
    ("tiny.0.1.mallory", StaleRound, "over"),
    ("tiny.9.1.mallory", NotFoundError, "no round 9"),
    ("nothing.1.1.mallory", NotFoundError, "no run nothing"),
    ("tiny.1.1.alpha", UnknownSite, "no order"),
    ("tiny.1.1.nobody", UnknownSite, "no order"),
]


async def test_what_was_not_asked_for_is_refused_and_journaled(arena: Arena) -> None:
    """Offer and commit of a stale, unknown or foreign order each end in their own status, and in a row that
    names the site; nobody's seat changes, and the run goes on."""
    assert arena.run.round is not None
    seats = arena.run.round.seats
    honest = arena.liar.commit(arena.order, arena.liar.make_file(arena.order, 1.0))
    for order, error, words in NOT_ASKED_FOR:
        with case(order), pytest.raises(error, match=words):
            await arena.liar.client.offer(msg.Offer(order, DIGEST, 100))
        with case(order), pytest.raises(error, match=words):
            await arena.liar.client.commit(dataclasses.replace(honest, order=order))
    rows = [_payload(row) for row in arena.rows("UploadRefused")]
    assert [(row["site"], row["order"]) for row in rows] == [
        ("mallory", order) for order, _, _ in NOT_ASKED_FOR for _ in range(2)
    ]
    assert arena.run.round.seats == seats
    await arena.finish()


async def test_a_site_outside_the_roster_is_refused(arena: Arena) -> None:
    """A member that the run does not name gets PERMISSION_DENIED for an order of its own making."""
    await arena.consortium.operator.stop("tiny")
    await arena.consortium.operator.start(
        dataclasses.replace(arena.run.spec, run="closed", sites=("alpha", "beta"))
    )
    with pytest.raises(UnknownSite, match="no part in run closed"):
        await arena.liar.client.offer(msg.Offer(order_id("closed", 1, 1, "mallory"), DIGEST, 100))
    with pytest.raises(NotFoundError):  # nor may it read what it has no part in
        [piece async for piece in arena.liar.client.fetch(DIGEST)]


async def test_a_run_that_no_site_could_be_told_of_is_not_started(arena: Arena) -> None:
    """A specification that is right JSON and would break every session that it is sent in is refused to its
    operator, with the field; the run that goes on does not notice."""
    spec = dataclasses.replace(arena.run.spec, run="next")
    for changes, words in (
        ({"task": "x" * ((1 << 20) + 1)}, "task"),
        ({"task": "\ud800"}, "surrogates"),
        ({"seed": 1 << 63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"steps": 1 << 60}, "steps"),
        ({"block_elements": -1}, "block_elements"),
        ({"patience_ms": 1 << 60}, "patience_ms"),
    ):
        with case(changes.keys()), pytest.raises(ConfigError, match=words):
            await arena.consortium.operator.start(dataclasses.replace(spec, **changes))
    assert set(arena.hub.state.runs) == {"tiny"}
    await arena.finish()


async def test_refusals_do_not_flood_the_journal(arena: Arena) -> None:
    """A site that is refused for ever has a bounded number of rows, and every answer is still a sentence."""
    began_s = time.monotonic()
    for _ in range(3 * REFUSALS.rows_max):
        with pytest.raises(NotFoundError):
            await arena.liar.client.offer(msg.Offer("nothing.1.1.mallory", DIGEST, 100))
    assert len(arena.rows("UploadRefused")) <= rows_allowed(REFUSALS, began_s)
    await arena.finish()


async def test_a_replayed_upload_counts_once(arena: Arena) -> None:
    """The same offer, bytes and commit again, in whole or in parts, get the same receipt and count once."""
    path = arena.liar.make_file(arena.order, 1.0)
    commit = arena.liar.commit(arena.order, path)
    first = await arena.upload(path, commit)
    for _ in range(3):
        missing = await arena.liar.client.offer(msg.Offer(commit.order, commit.digest, commit.size_bytes))
        assert missing.offset == commit.size_bytes
        assert await arena.liar.client.commit(commit) == first
    with pytest.raises(OfferAgain, match="nothing was offered"):  # it is stored: no stream is open for it
        await arena.liar.client.send_file(path, commit.digest, commit.size_bytes)
    assert len(arena.rows("UpdateStored")) == 1
    await arena.finish(liar_counts=True)


async def test_a_second_story_does_not_unseat_the_first(arena: Arena) -> None:
    """Another blob, or the same blob with another weight, after the receipt: refused or answered as before,
    journaled, and what was acknowledged counts unchanged."""
    path = arena.liar.make_file(arena.order, 1.0)
    commit = arena.liar.commit(arena.order, path, weight=10)
    receipt = await arena.upload(path, commit)
    other = arena.liar.make_file(arena.order, 2.0)
    attempt = arena.liar.commit(arena.order, other, weight=99)
    with pytest.raises(Equivocation, match="another blob"):
        await arena.liar.client.offer(msg.Offer(attempt.order, attempt.digest, attempt.size_bytes))
    with pytest.raises(Equivocation, match="another blob"):
        await arena.liar.client.commit(attempt)
    heavier = arena.liar.commit(arena.order, arena.liar.make_file(arena.order, 1.0), weight=1_000)
    assert await arena.liar.client.commit(heavier) == receipt
    assert arena.run.round is not None
    seat = arena.run.round.seats["mallory"]
    assert seat.standing.value == "stored" and seat.update is not None
    assert (seat.update.blob, seat.update.weight) == (commit.digest, 10)
    assert len(arena.rows("UpdateRejected")) == 2  # a third would be quarantine
    await arena.finish(liar_counts=True)


async def test_chunks_out_of_order_are_refused_with_what_is_missing(arena: Arena) -> None:
    """A gap, a disagreement and bytes outside the blob are refused in words; overlaps that agree are not,
    and the upload then counts."""
    path = arena.liar.make_file(arena.order, 1.0)
    data, commit = path.read_bytes(), arena.liar.commit(arena.order, path)
    offer = msg.Offer(commit.order, commit.digest, commit.size_bytes)
    await arena.liar.client.offer(offer)
    half = len(data) // 2

    async def send(*frames: bytes) -> Refusal | list[bytes]:
        return await raw(arena.liar.keys, call("Transfer", "Send").path, frames)

    assert isinstance(await send(frame(0, data[:half], commit.digest), frame(0, data[:half])), list)
    for frames, words in (
        ([frame(half + 1, data[half + 1 :], commit.digest)], f"bytes {half} to {half} of blob"),
        ([frame(half - 1, b"\x00\x00", commit.digest)], "differ"),
        ([frame(half, data[half:] + b"more", commit.digest)], "outside blob"),
        ([frame((1 << 53) - 1, b"x", commit.digest)], "outside blob"),
    ):
        refused = await send(*frames)
        assert isinstance(refused, Refusal) and refused.status == "INVALID_ARGUMENT", refused
        assert words in refused.sentence
    with pytest.raises(RemoteError, match=f"bytes {half} to {len(data) - 1} .*missing"):
        await arena.liar.client.commit(commit)
    assert (await arena.liar.client.offer(offer)).offset == half
    assert isinstance(await send(frame(half - 2, data[half - 2 :], commit.digest)), list)
    assert (await arena.liar.client.commit(commit)).outcome == "stored"
    await arena.finish(liar_counts=True)


async def test_a_flipped_byte_is_found_at_the_commit(arena: Arena) -> None:
    """Bytes that are not those of the digest are thrown away, journaled, and only their site is without a
    part in the round."""
    path = arena.liar.make_file(arena.order, 1.0)
    commit = arena.liar.commit(arena.order, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    await arena.liar.client.offer(msg.Offer(commit.order, commit.digest, commit.size_bytes))
    await raw(arena.liar.keys, call("Transfer", "Send").path, [frame(0, bytes(data), commit.digest)])
    with pytest.raises(FedtrainError, match="thrown away"):
        await arena.liar.client.commit(commit)
    assert not arena.hub.blobs.has(commit.digest)
    assert len(arena.rows("UpdateRejected")) == 1
    await arena.finish()


async def test_a_commit_is_what_its_site_signed(arena: Arena) -> None:
    """A commit of which one signed field was changed, or that another key signed, is UNAUTHENTICATED; the
    true one still counts."""
    path = arena.liar.make_file(arena.order, 1.0)
    commit = arena.liar.commit(arena.order, path)
    await arena.liar.client.offer(msg.Offer(commit.order, commit.digest, commit.size_bytes))
    await arena.liar.client.send_file(path, commit.digest, commit.size_bytes)
    other = arena.site("beta").commit(arena.order, path)
    for changes in (
        {"digest": hashlib.sha256(b"other").hexdigest()},
        {"weight": 11},
        {"steps": commit.steps + 1},
        {"size_bytes": commit.size_bytes + 1},
        {"signature": _flipped(commit.signature)},
        {"signature": other.signature},
        {"signature": "=" * 128},
    ):
        with case(changes), pytest.raises(BadSignature):
            await arena.liar.client.commit(dataclasses.replace(commit, **changes))
    assert (await arena.liar.client.commit(commit)).outcome == "stored"
    await arena.finish(liar_counts=True)


async def test_a_forged_consent_ends_the_session_and_nothing_else(tmp_path: Path) -> None:
    """A consent that its site did not sign like this is not journaled; its session ends with the reason."""
    async with arena_in(tmp_path, liars=4) as arena:
        before = arena.rows("ConsentGiven", "ConsentRefused")
        forgeries = ("signature", "order", "answer", "key")
        for liar, forged in zip(arena.liars, forgeries, strict=True):
            order = arena.orders["alpha" if forged == "order" else liar.name]
            statement = statements.Consent(order.id, canonical.digest(order), True, ())
            signer = arena.site("beta") if forged == "key" else liar
            signature = statements.sign(statement, signer.keys.message_key).hex()
            if forged == "signature":
                signature = _flipped(signature)
            liar.outbox.put_nowait(msg.Consent(order.id, forged != "answer", (), signature))
            with case(forged), pytest.raises((BadSignature, UnknownSite)):
                await liar.tasks[-1]
        assert arena.rows("ConsentGiven", "ConsentRefused") == before
        await arena.finish()


async def test_what_is_said_again_is_no_row(arena: Arena) -> None:
    """Failures, consents and measurements that change nothing, a thousand times over, leave the journal as
    it is."""
    liar, order = arena.liar, arena.order
    liar.outbox.put_nowait(msg.Failure(order.id, "no"))
    await arena.until(lambda: arena.run.round is None or arena.run.round.seats["mallory"].reason == "no")
    before = len(list(arena.hub.journal.read()))
    for _ in range(1_000):
        liar.outbox.put_nowait(msg.Failure(order.id, "no"))
        liar.outbox.put_nowait(msg.Failure("nothing.1.1.mallory", "no"))
        liar.outbox.put_nowait(msg.Evaluation(order.id, 1.0, 1))
    liar.consent(order)
    liar.outbox.put_nowait(None)
    await liar.tasks[-1]  # the coordinator has read it all
    assert len(list(arena.hub.journal.read())) <= before + 1
    await arena.finish()


def _payload(row: Row) -> dict[str, str]:
    return dict(json.loads(row.payload))


def _flipped(signature: str) -> str:
    return ("0" if signature[0] != "0" else "1") + signature[1:]
