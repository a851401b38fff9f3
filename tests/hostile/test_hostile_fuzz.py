"""Fuzzers over everything that somebody else writes: whatever the bytes, the answer is an error of ours.

Each test takes right bytes and spoils them; an exception that is no `FedtrainError` is a found bug, and
its bytes then stay here as an example. All examples together take well under a minute.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_world import LAYOUT, spec_of
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import example, given, strategies as st
from mutations import Edit, edits, fuzzed, spoil

from fedtrain.config import load_peer, load_run
from fedtrain.core import canonical, events, messages as msg
from fedtrain.core.driver import Entry
from fedtrain.core.orders import Order, OrderKind, Progress, Result
from fedtrain.core.spec import RunSpec
from fedtrain.errors import BadMailbox, BadUpdate, ConfigError, FedtrainError, LocalError, RemoteError
from fedtrain.methods.codecs import CODECS, codec
from fedtrain.methods.layout import Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.updatefile import UpdateFacts, UpdateHeader, UpdateWriter, inspect
from fedtrain.storage.audit import verify
from fedtrain.storage.journal import Journal
from fedtrain.storage.mailbox import Mailbox
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import PREFIX, decode_invite, encode_invite, make_invite
from fedtrain.wire import convert, epochs
from fedtrain.wire.chunks import frame, read_frame
from fedtrain.wire.v1 import session_pb2

ORDER_ID = "tiny.1.1.north"
DIGEST = "ab" * 32
TEXTS = {"order": ORDER_ID, "id": ORDER_ID, "digest": DIGEST, "run": "tiny", "site": "north", "name": "north"}


def only_ours(read: Callable[[], object], kind: type[FedtrainError] = FedtrainError) -> None:
    """Reading ends well or in one of our errors, which is never our own bug and has a bounded sentence."""
    try:
        read()
    except kind as error:
        assert not isinstance(error, LocalError), error
        assert len(str(error)) < 1 << 16


def right_message(message: type[Any]) -> Any:
    """A protobuf message with something plausible in every field."""
    made = message()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            value: Any = right_message(getattr(made, field.name).__class__) if not field.is_repeated else None
            if field.is_repeated:
                getattr(made, field.name).add()
            else:
                getattr(made, field.name).CopyFrom(value)
            continue
        plain: Any = {
            FieldDescriptor.CPPTYPE_STRING: TEXTS.get(field.name, "ab"),
            FieldDescriptor.CPPTYPE_DOUBLE: 1.5,
            FieldDescriptor.CPPTYPE_FLOAT: 1.5,
            FieldDescriptor.CPPTYPE_BOOL: True,
        }.get(field.cpp_type, 1)
        if field.type == FieldDescriptor.TYPE_BYTES:
            plain = b"bytes"
        if field.is_repeated:
            getattr(made, field.name).append(plain)
        else:
            setattr(made, field.name, plain)
    return made


MESSAGES = [
    (kind, right_message(record.message).SerializeToString()) for kind, record in convert.RECORDS.items()
]


@given(st.sampled_from(MESSAGES), edits())
@fuzzed(1_500)
def test_spoiled_messages(sample: tuple[type[Any], bytes], changes: list[Edit]) -> None:
    """Every record of the protocol, read from spoiled bytes."""
    kind, data = sample
    only_ours(lambda: convert.decode(kind, spoil(data, changes)), RemoteError)


BODIES = [
    session_pb2.FromPeer(**{name: right_message(record.message)}).SerializeToString()
    for name, record in convert.FROM_PEER.items()
]
ANSWERS = [
    session_pb2.ToPeer(epoch=1, **{name: right_message(record.message)}).SerializeToString()
    for name, record in convert.TO_PEER.items()
]


@given(st.sampled_from(BODIES), st.sampled_from(ANSWERS), edits())
@fuzzed(600)
def test_spoiled_envelopes(body: bytes, answer: bytes, changes: list[Edit]) -> None:
    """What travels in a session, in both directions."""
    only_ours(lambda: convert.decode_from_peer(spoil(body, changes)), RemoteError)
    only_ours(lambda: convert.decode_to_peer(spoil(answer, changes)), RemoteError)


@given(edits())
@fuzzed(600)
@example([(0, 0, b"\x1a" + b"\xff" * 9 + b"\x01")])
def test_spoiled_chunks(changes: list[Edit]) -> None:
    """A chunk is split by hand before protobuf sees it; what comes out is within bounds."""
    raw = spoil(frame(7, b"some bytes", DIGEST), changes)

    def read() -> None:
        digest, offset, data = read_frame(raw)
        assert digest in ("", DIGEST) or len(digest) == 64
        assert 0 <= offset <= 1 << 53 and 0 < len(data) <= len(raw)

    only_ours(read, RemoteError)


@given(st.text(max_size=80) | st.from_regex(r"\d{0,25}\.\d{0,25}\.[0-9a-f]{120,130}", fullmatch=True))
@fuzzed(300)
def test_spoiled_epochs(text: str) -> None:
    """The epoch in a call's metadata."""
    only_ours(lambda: epochs.read([(epochs.KEY, text)]), RemoteError)


HEADER = UpdateHeader("tiny", 1, "north", "up", 0, LAYOUT.digest, "float32", 4096, 16, None)


def update_bytes(folder: Path, name: str) -> bytes:
    header = dataclasses.replace(HEADER, codec=name)
    writer = UpdateWriter(folder / name, header)
    writer.write_block(codec(name).encode(np.linspace(-1, 1, 16, dtype=np.float32), bytes(32)))
    writer.close()
    return (folder / name).read_bytes()


@given(st.sampled_from(sorted(CODECS)), edits(), st.integers(0, 600))
@fuzzed(500)
def test_spoiled_updates(tmp_path: Path, name: str, changes: list[Edit], cut: int) -> None:
    """Header and blocks of an update, of every codec: what is accepted has a finite norm."""
    data = spoil(update_bytes(tmp_path, name), changes)
    path = tmp_path / "spoiled"
    path.write_bytes(data[: len(data) - cut] if cut < 300 else data)
    facts = UpdateFacts("tiny", 1, "north", 0, LAYOUT.digest, name, 16)

    def read() -> None:
        assert math.isfinite(inspect(path, facts))

    only_ours(read, BadUpdate)


@given(edits())
@fuzzed(500)
@example([(8, 0, b"[" * 12)])
def test_spoiled_models(tmp_path: Path, changes: list[Edit]) -> None:
    """A model file in safetensors' shape."""
    source = tmp_path / "model"
    if not source.exists():
        writer = ModelWriter(source, LAYOUT, "tiny", 0)
        writer.write(np.arange(16, dtype=np.float32))
        writer.close()
    path = tmp_path / "spoiled"
    path.write_bytes(spoil(source.read_bytes(), changes))

    def read() -> None:
        with ModelReader(path) as reader:
            reader.verify(LAYOUT)

    only_ours(read, BadUpdate)


@given(edits())
@fuzzed(500)
def test_spoiled_layouts(changes: list[Edit]) -> None:
    """The layout that comes with initial weights."""
    text = spoil(LAYOUT.to_json().encode(), changes).decode(errors="surrogateescape")
    only_ours(lambda: Layout.from_json(text), BadUpdate)


def an_order() -> Order:
    return Order(
        id=ORDER_ID, kind=OrderKind.TRAIN, run="tiny", round=1, attempt=1, site="north", seed=1, model=None,
        steps=3, evaluate=True, parent="", returned=(), cohort=("north",), task="{}", codec="int8",
        block_elements=4096, patience_ms=1_000,
    )  # fmt: skip


DOCUMENTS: list[tuple[type[Any], bytes]] = [
    (type(value), canonical.encode(value))
    for value in (
        an_order(),
        Result(ORDER_ID, failure="no", notes=("a", "b")),
        Progress(ORDER_ID, 1, 2, 3, 0.5, 7.0, "train"),
        spec_of(),
        HEADER,
        LAYOUT,
        events.UpdateStored(1, ORDER_ID, DIGEST, 9, 1, 1, 0.5, 1.0, None, 0, 0.1, "ab"),
        events.RunSubmitted(1, spec_of(), "operator"),
    )
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(st.sampled_from(DOCUMENTS), edits())
@fuzzed(800)
@example((RunSpec, b'{"run":' + b"9" * 5_000 + b"}"), [(0, 0, b"")])
@example((RunSpec, b"[" * 50_000), [(0, 0, b"")])
@example((RunSpec, b'{"run":"\xff"}'), [(0, 0, b"")])
def test_spoiled_documents(sample: tuple[type[Any], bytes], changes: list[Edit]) -> None:
    """Canonical JSON of every kind; what is read can be written again."""
    kind, data = sample

    def read() -> None:
        assert canonical.encode(canonical.decode(kind, spoil(data, changes)))

    only_ours(read, RemoteError)


@given(st.sampled_from([kind for kind, _ in DOCUMENTS]), JSON, st.data())
@fuzzed(500)
def test_documents_of_other_shapes(kind: type[Any], value: Any, data: st.DataObject) -> None:
    """A field of any dataclass holds any JSON value."""
    plain = json.loads(next(raw for known, raw in DOCUMENTS if known is kind))
    plain[data.draw(st.sampled_from(sorted(plain)))] = value
    only_ours(lambda: canonical.from_plain(kind, plain), RemoteError)


@pytest.fixture(scope="module")
def mailbox(tmp_path_factory: pytest.TempPathFactory) -> Mailbox:
    box = Mailbox(tmp_path_factory.mktemp("mailbox"))
    box.create()
    return box


@given(st.sampled_from(["result", "progress", "order", "beat", "claim"]), edits())
@fuzzed(500)
def test_spoiled_mailboxes(mailbox: Mailbox, entry: str, changes: list[Edit]) -> None:
    """Entries of a mailbox that the other process spoiled: each look is an answer or a `BadMailbox`."""
    root = mailbox.results_folder.parent
    places: dict[str, tuple[Path, object]] = {
        "result": (mailbox.results_folder / ORDER_ID / "result.json", Result(ORDER_ID, failure="no")),
        "progress": (root / "progress" / f"{ORDER_ID}.json", Progress(ORDER_ID, 1)),
        "order": (mailbox.orders_folder / ORDER_ID / "order.json", an_order()),
        "beat": (root / "trainers" / "t.json", {"counter": 1, "order": ORDER_ID}),
        "claim": (root / "claims" / ORDER_ID / "claim.json", {"trainer": "t"}),
    }
    path, value = places[entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(spoil(canonical.encode(value), changes))
    for look in (mailbox.results, mailbox.progress, mailbox.trainers, mailbox.claims, mailbox.rubbish):
        only_ours(look)
    only_ours(lambda: mailbox.take_result(ORDER_ID), BadMailbox)
    for told in mailbox.progress().values():
        assert math.isfinite(told.tokens_per_s)


RUN_FILE = Path(__file__).parents[2] / "configs"
PEER_FILES = Path(__file__).parents[2] / "peers"


def yaml_files() -> list[tuple[Callable[[Path], object], bytes]]:
    runs = [(load_run, path.read_bytes()) for path in sorted(RUN_FILE.glob("*.yaml"))]
    peers = [(load_peer, path.read_bytes()) for path in sorted(PEER_FILES.rglob("peer.yaml"))]
    assert runs and peers
    return [*runs, *peers]


YAML = [
    b"&a",
    b"*a",
    b"!!python/object/apply:os.system [true]",
    b"<<: *a",
    b"? ",
    b"\t",
    b"%YAML 9.9\n",
    b"---\n",
]


@given(st.sampled_from(yaml_files()), st.tuples(edits(), st.integers(0, 4_000), st.sampled_from(YAML)))
@fuzzed(300)
def test_spoiled_yaml(
    tmp_path: Path,
    sample: tuple[Callable[[Path], object], bytes],
    changes: tuple[list[Edit], int, bytes],
) -> None:
    """Run and site files: every mistake is a `ConfigError` that names the file, of a bounded length."""
    load, data = sample
    path = tmp_path / "file.yaml"
    edited, place, trick = changes
    path.write_bytes(spoil(data, [*edited, (place, 0, trick)]))
    try:
        load(path)
    except ConfigError as error:
        assert str(error).startswith(str(path)), error
        assert len(str(error)) < 4_000


NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def invite() -> str:
    authority = Authority(*create_authority("test", NOW_MS))
    return encode_invite(make_invite(authority, "north", Role.SITE, "127.0.0.1:7443", NOW_MS, 60_000))


@given(edits(), st.booleans())
@fuzzed(300)
def test_spoiled_invites(invite: str, changes: list[Edit], mended: bool) -> None:
    """An invite with changed bytes, with and without a checksum that fits them again."""
    digits = invite.removeprefix(PREFIX)
    payload = base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
    if mended:
        body = spoil(payload[:-_CHECKSUM_BYTES], changes)
        body += hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]
        line = PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode()
    else:
        line = spoil(invite.encode(), changes).decode(errors="replace")
    only_ours(lambda: decode_invite(line, NOW_MS), ConfigError)


_CHECKSUM_BYTES = 4


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a closed journal of forty rows."""
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    opened = Journal.open(path)
    for number in range(40):
        opened.append([Entry(number, "tiny", "Booted", json.dumps({"epoch": number}))])
    opened.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    return path.read_bytes()


@given(edits(), st.integers(0, 1 << 16))
@fuzzed(200)
@example([(0, 100, b"")], 0)
@example([(18, 2, b"\x09\x09")], 0)
@example([(3896, 0, b"\xff")], 0)  # in the schema's text, which SQLite puts into its error's message
@example([(3800, 0, b"\xff")], 0)
@example([(3700, 0, b"\xff")], 0)
def test_spoiled_journals(tmp_path: Path, journal: bytes, changes: list[Edit], place: int) -> None:
    """Any bytes of a journal's file: verification reports and opening refuses or reads; neither breaks."""
    path = tmp_path / "journal.db"
    for leftover in tmp_path.glob("journal.db*"):
        leftover.unlink()
    kept = [(place * 7 + at, len(put), put) for at, _, put in changes if put]  # in place: pages stay pages
    path.write_bytes(spoil(journal, kept or changes))
    only_ours(lambda: verify(path, lambda *_: False))

    def read() -> None:
        opened = Journal.open(path)
        try:
            for _ in opened.read():
                pass
        finally:
            opened.close()

    only_ours(read)


def test_every_message_is_fuzzed() -> None:
    """A record that is added to the protocol is fuzzed as well."""
    assert {kind for kind, _ in MESSAGES} == set(convert.RECORDS)
    assert msg.Commit in convert.RECORDS
