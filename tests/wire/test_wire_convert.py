"""Messages survive the wire unchanged, and what does not fit is refused in words."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from wire_loopback import ZERO_DIGEST, a_commit, an_order

from fedtrain.core import messages as core
from fedtrain.core.orders import ModelRef, Order, OrderKind, Progress, order_id
from fedtrain.errors import BadOrder, BadUpdate, LocalError, RemoteError
from fedtrain.wire import convert, values
from fedtrain.wire.shapes import COUNT_MAX, Record, Row, Text
from fedtrain.wire.v1 import common_pb2, session_pb2, transfer_pb2

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, COUNT_MAX)
indexes = st.integers(0, 10**9 - 1)
flags = st.booleans()
reals = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
words = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,10}", fullmatch=True)
datasets = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
identifiers = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
order_ids = st.builds(order_id, names, indexes, indexes, names)
signatures = st.binary(min_size=64, max_size=64).map(bytes.hex)
versions = st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 16))


def tuples(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=4).map(tuple)


def mappings(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(keys, values, max_size=4).map(lambda found: dict(sorted(found.items())))


reasons = tuples(texts)
models = st.builds(ModelRef, indexes, digests, digests, indexes, tuples(st.tuples(indexes, digests, counts)))
progresses = st.builds(Progress, order_ids, counts, counts, counts, st.none() | reals, positive, texts)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    run, index, attempt, site = draw(st.tuples(names, indexes, indexes, names))
    return Order(
        id=order_id(run, index, attempt, site),
        kind=draw(st.sampled_from(OrderKind)),
        run=run,
        round=index,
        attempt=attempt,
        site=site,
        seed=draw(st.integers(0, 2**63 - 1)),
        model=draw(st.none() | models),
        steps=draw(counts),
        evaluate=draw(flags),
        parent=draw(st.just("") | order_ids),
        returned=draw(tuples(order_ids)),
        cohort=draw(tuples(names)),
        task=draw(texts),
        codec=draw(st.just("") | words),
        block_elements=draw(st.integers(0, 1 << 31)),
        patience_ms=draw(counts),
    )


STRATEGIES: dict[type[Any], st.SearchStrategy[Any]] = {
    Progress: progresses,
    Order: orders(),
    core.Hello: st.builds(
        core.Hello, versions, texts, identifiers, tuples(words), tuples(words), tuples(order_ids)
    ),
    core.Heartbeat: st.builds(core.Heartbeat, tuples(progresses)),
    core.Consent: st.builds(core.Consent, order_ids, flags, reasons, signatures),
    core.Failure: st.builds(core.Failure, order_ids, texts),
    core.Evaluation: st.builds(core.Evaluation, order_ids, reals, counts),
    core.Answer: st.builds(core.Answer, identifiers, flags, reasons),
    core.Goodbye: st.builds(core.Goodbye, texts),
    core.Agreement: st.builds(core.Agreement, order_ids, flags, reasons, digests, signatures),
    core.Declaration: st.builds(core.Declaration, digests, mappings(datasets, counts), signatures),
    core.Withdrawal: st.builds(core.Withdrawal, names, texts, signatures),
    core.Roster: st.builds(core.Roster, mappings(names, words), counts, signatures),
    core.Statement: st.builds(core.Statement, words, st.just("") | order_ids, texts, signatures),
    core.Welcome: st.builds(core.Welcome, names, versions, texts, counts, counts),
    core.Invitation: st.builds(core.Invitation, orders()),
    core.Cancellation: st.builds(core.Cancellation, order_ids, texts),
    core.Inquiry: st.builds(core.Inquiry, identifiers, orders()),
    core.Publication: st.builds(core.Publication, names, indexes, indexes, digests, texts),
    core.Head: st.builds(core.Head, names, counts, digests, counts, signatures),
    core.Superseded: st.builds(core.Superseded, texts),
    core.Offer: st.builds(core.Offer, order_ids, digests, counts),
    core.Missing: st.builds(core.Missing, counts, counts),
    core.Commit: st.builds(
        core.Commit,
        order_ids,
        digests,
        counts,
        counts,
        counts,
        positive,
        st.none() | reals,
        st.none() | reals,
        counts,
        positive,
        texts,
        signatures,
    ),
    core.Receipt: st.builds(core.Receipt, order_ids, digests, words, counts, counts, signatures),
    values.FetchRequest: st.builds(values.FetchRequest, digests, counts),
    values.SigningRequest: st.builds(values.SigningRequest, st.binary(max_size=50), digests),
    values.Admission: st.builds(
        values.Admission,
        st.binary(max_size=50),
        st.binary(max_size=50),
        digests,
        names,
        st.binary(max_size=50),
    ),
    values.InviteRequest: st.builds(values.InviteRequest, names, words, st.integers(0, 86_400)),
    values.InviteOrder: st.builds(
        values.InviteOrder, names, words, st.integers(0, 86_400), words | st.just(""), flags
    ),
    values.Verdict: st.builds(values.Verdict, names, texts),
    values.VersionOrder: st.builds(values.VersionOrder, names, indexes),
    values.RollOverOrder: st.builds(values.RollOverOrder, flags),
    values.Registration: st.builds(values.Registration, st.binary(max_size=50), digests, words | st.just("")),
    values.InviteLine: st.builds(values.InviteLine, texts),
    values.Spec: st.builds(values.Spec, texts),
    values.RunName: st.builds(values.RunName, names),
    values.MemberName: st.builds(values.MemberName, names),
    values.Everything: st.builds(values.Everything),
    values.ExportRequest: st.builds(values.ExportRequest, names, st.none() | indexes),
    values.ExportHead: st.builds(values.ExportHead, indexes, counts, digests, digests),
    values.JournalRequest: st.builds(values.JournalRequest, counts),
    values.HealthRequest: st.builds(values.HealthRequest, texts),
    values.HealthResponse: st.builds(values.HealthResponse, st.integers(0, 3)),
}

messages = st.one_of(*STRATEGIES.values())


def test_every_record_has_a_round_trip() -> None:
    """A message added to the table is added to the property below."""
    assert set(STRATEGIES) == set(convert.RECORDS)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_what_is_written_is_what_is_read(message: object) -> None:
    """Every value comes back equal, and of equal types, from its bytes."""
    again = convert.decode(type(message), convert.encode(message))
    assert again == message
    assert repr(again) == repr(message)


@QUICK
@given(st.one_of(*(STRATEGIES[record.kind] for record in convert.FROM_PEER.values())))
def test_a_site_message_survives_its_envelope(message: core.FromPeer) -> None:
    """Each kind of message from a site names itself in its envelope."""
    assert convert.decode_from_peer(convert.encode_from_peer(message)) == message


@QUICK
@given(counts, st.one_of(*(STRATEGIES[record.kind] for record in convert.TO_PEER.values())))
def test_a_coordinator_message_survives_its_envelope(epoch: int, message: core.ToPeer) -> None:
    """Each kind of message to a site arrives with its epoch."""
    assert convert.decode_to_peer(convert.encode_to_peer(epoch, message)) == (epoch, message)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(convert.RECORDS, key=str)), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(kind: type[Any], data: bytes) -> None:
    """Random bytes end in a value or in `RemoteError`, in nothing else."""
    try:
        message = convert.decode(kind, data)
    except RemoteError:
        return
    assert convert.decode(kind, convert.encode(message)) == message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages, st.data())
def test_a_damaged_message_is_read_or_refused(message: object, data: st.DataObject) -> None:
    """One changed byte ends in a value within bounds or in `RemoteError`."""
    raw = bytearray(convert.encode(message))
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RemoteError):
        convert.encode(convert.decode(type(message), bytes(raw)))


def protobuf(value: object, **changes: Any) -> bytes:
    """Bytes of a message in which fields were changed behind the rules' back."""
    message = convert.write_message(value)
    for name, change in changes.items():
        if isinstance(change, list):
            del getattr(message, name)[:]
            getattr(message, name).extend(change)
        else:
            setattr(message, name, change)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "../../etc/passwd"}, r"Order\.id is '\.\./"),
        ({"id": "lm.3.0.jsc\n"}, r"Order\.id"),
        ({"id": "lm.4.0.jsc"}, "not what the order's other fields say"),
        ({"kind": 0}, "unknown number 0"),
        ({"kind": 77}, "newer version"),
        ({"run": "a" * 64}, "64 characters, at most 63"),
        ({"run": "A"}, r"Order\.run"),
        ({"run": "a/../b"}, r"Order\.run"),
        ({"run": "a\x00b"}, r"Order\.run"),
        ({"site": ""}, r"Order\.site"),
        ({"seed": 2**63}, "outside 0"),
        ({"steps": 2**64 - 1}, r"Order\.steps"),
        ({"round": 10**9}, r"Order\.round"),
        ({"parent": "nonsense"}, r"Order\.parent"),
        ({"cohort": ["a"] * 4097}, "4097 items, at most 4096"),
        ({"cohort": ["ok", "../no"]}, r"Order\.cohort\[1\]"),
        ({"task": "x" * ((1 << 20) + 1)}, r"Order\.task has 1048577 characters"),
        ({"block_elements": 2**40}, r"Order\.block_elements"),
        ({"codec": "int8; rm"}, r"Order\.codec"),
    ],
)
def test_a_hostile_order_is_a_bad_order(changes: dict[str, Any], sentence: str) -> None:
    """Each way to break an order is `BadOrder` and names the field."""
    with pytest.raises(BadOrder, match=sentence):
        convert.decode(Order, protobuf(an_order(), **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm": math.nan}, "norm is nan"),
        ({"norm": math.inf}, "norm is inf"),
        ({"norm": -1.0}, r"below 0\.0"),
        ({"train_loss": math.nan}, "train_loss is nan"),
        ({"weight": 10**18}, "weight is 1000000000000000000"),
        ({"size_bytes": 2**63}, "size_bytes is 9223372036854775808"),
        ({"digest": "0" * 63}, r"Commit\.digest"),
        ({"digest": "g" * 64}, r"Commit\.digest"),
        ({"digest": "0" * 1000}, "1000 characters"),
        ({"signature": ""}, "signature"),
        ({"signature": "é" * 10}, "signature"),
    ],
)
def test_a_hostile_commit_is_a_bad_update(changes: dict[str, Any], sentence: str) -> None:
    """Numbers that are no numbers, sizes beyond any blob and false digests are `BadUpdate`."""
    with pytest.raises(BadUpdate, match=sentence):
        convert.decode(core.Commit, protobuf(a_commit(), **changes))


def test_an_absent_submessage_is_said() -> None:
    """An invitation without an order, and a greeting without a version, are refused by name."""
    envelope = session_pb2.ToPeer(epoch=1, invitation=session_pb2.Invitation())
    with pytest.raises(BadOrder, match=r"Invitation\.order is missing"):
        convert.decode_to_peer(envelope.SerializeToString())
    with pytest.raises(RemoteError, match=r"Hello\.protocol is missing"):
        convert.decode(core.Hello, session_pb2.Hello(session="s").SerializeToString())


def test_an_empty_envelope_and_a_huge_epoch_are_refused() -> None:
    """A body that this version does not know, or an epoch beyond every count, is the sender's fault."""
    with pytest.raises(RemoteError, match="without a body"):
        convert.decode_from_peer(b"")
    with pytest.raises(RemoteError, match="without a body"):
        convert.decode_from_peer(b"\xfa\x01\x00")  # field 31, from a version to come
    head = session_pb2.ToPeer(epoch=2**60, superseded=session_pb2.Superseded(reason="r"))
    with pytest.raises(RemoteError, match="epoch"):
        convert.decode_to_peer(head.SerializeToString())


def test_a_field_of_a_newer_minor_version_is_ignored() -> None:
    """Unknown fields beside known ones do not hinder an older side."""
    raw = convert.encode(core.Missing(1, 2)) + b"\xfa\x01\x03new"
    assert convert.decode(core.Missing, raw) == core.Missing(1, 2)


def test_two_hundred_nested_messages_are_refused() -> None:
    """Bytes nested beyond protobuf's depth, in a field that is read as a message, are no crash."""
    raw = b""
    for _ in range(200):
        raw = b"\x0a" + _length(raw) + raw
    with pytest.raises(RemoteError):
        convert.decode_from_peer(raw)
    with pytest.raises(RemoteError):
        convert.decode(core.Missing, b"\x0b" * 200)


def _length(data: bytes) -> bytes:
    size, out = len(data), b""
    while size >= 128:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    return out + bytes([size])


def test_half_a_surrogate_is_refused_from_them_and_from_us() -> None:
    """Text that is not UTF-8 is refused when read, and never written."""
    with pytest.raises(RemoteError):
        convert.decode(core.Goodbye, b"\x0a\x03\xed\xa0\x80")
    with pytest.raises(LocalError):
        convert.encode(core.Goodbye("\ud800"))


@pytest.mark.parametrize(
    "message",
    [
        dataclasses.replace(a_commit(), norm=math.nan),
        dataclasses.replace(a_commit(), weight=-1),
        dataclasses.replace(a_commit(), weight=True),
        dataclasses.replace(a_commit(), norm=1),
        dataclasses.replace(a_commit(), order="x"),
        an_order(cohort=["jsc"]),
        an_order(kind="fly"),
        an_order(evaluate=1),
        an_order(task=b"{}"),
        core.Hello((1, 0, 0), "", "s", (), ()),  # type: ignore[arg-type]
        core.Invitation("order"),  # type: ignore[arg-type]
        values.SigningRequest("text", ZERO_DIGEST),  # type: ignore[arg-type]
        values.SigningRequest(b"x" * (1 << 20), ZERO_DIGEST),
        values.Caller("a", "b", "c", "d", 0),
    ],
)
def test_what_would_be_refused_is_not_sent(message: object) -> None:
    """A value outside its bounds, or of no protocol at all, is our bug before it is theirs."""
    with pytest.raises(LocalError):
        convert.encode(message)


def test_a_message_does_not_travel_the_wrong_way() -> None:
    """A site cannot send what only the coordinator says, nor the reverse."""
    with pytest.raises(LocalError, match="direction"):
        convert.encode_from_peer(core.Superseded("r"))  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="direction"):
        convert.encode_to_peer(1, core.Goodbye("r"))  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="epoch"):
        convert.encode_to_peer(-1, core.Superseded("r"))


def test_a_field_without_a_rule_is_found_at_import() -> None:
    """A record or row that forgets a field of its message cannot be made."""
    with pytest.raises(LocalError, match="size_bytes"):
        Record(core.Missing, transfer_pb2.Missing, offset=Text(1))
    with pytest.raises(LocalError, match="minor"):
        Row(common_pb2.ProtocolVersion, major=Text(1))
