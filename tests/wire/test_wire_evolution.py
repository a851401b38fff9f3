"""What a minor version may change: the wire of 1.0 stays what it was, and what is signed stays whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, json_format
from wire_loopback import ZERO_DIGEST, a_commit, an_order

from fedtrain.core import messages as core
from fedtrain.core.orders import ModelRef, Order
from fedtrain.errors import RemoteError
from fedtrain.trust import statements
from fedtrain.wire import convert
from fedtrain.wire.v1 import common_pb2, enrolment_pb2, operations_pb2, session_pb2, transfer_pb2
from fedtrain.wire.values import RunName, SigningRequest, Spec

OLD = json.loads((Path(__file__).parent / "protocol_1_0.json").read_text())

UNKNOWN = bytes([(1000 << 3 | 0) & 127 | 128, (1000 << 3 | 0) >> 7, 1])
"""Field 1000, a varint, of value 1."""

SIGNED_1_0 = {
    Order: "id kind run round attempt site seed model steps evaluate parent returned cohort task codec "
    "block_elements patience_ms",
    ModelRef: "version digest layout_digest snapshot_version chain",
    statements.Commit: "run order digest size_bytes weight steps",
    statements.Receipt: "order digest outcome epoch at_ms",
    statements.Consent: "order order_digest accepted reasons",
}
"""Signed records -> their fields. Both ends spell them from what they know, so both must know the same."""

MODEL = ModelRef(1, ZERO_DIGEST, ZERO_DIGEST, 0, ((0, ZERO_DIGEST, 5),))

SIGNED = [
    an_order(model=MODEL),
    core.Consent("lm.3.0.jsc", True, (), "aa"),
    core.Failure("lm.3.0.jsc", "why"),
    core.Evaluation("lm.3.0.jsc", 0.5, 1),
    core.Head("library", 1, ZERO_DIGEST, 1, "aa"),
    a_commit(),
    core.Receipt("lm.3.0.jsc", ZERO_DIGEST, "stored", 1, 1, "aa"),
    SigningRequest(b"csr", "ab" * 32),
    Spec("{}"),
    RunName("lm"),
]
SPOKEN = [
    core.Hello((1, 2), "9", "s", (), ()),
    core.Welcome("library", (1, 2), "9", 1, 1),
    core.Heartbeat(),
    core.Goodbye("bye"),
    core.Cancellation("lm.3.0.jsc", "over"),
    core.Publication("lm", 1, 1, ZERO_DIGEST, "counted"),
    core.Superseded("by"),
    core.Offer("lm.3.0.jsc", ZERO_DIGEST, 1),
    core.Missing(0, 1),
]


def today() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet()
    for module in (common_pb2, enrolment_pb2, operations_pb2, session_pb2, transfer_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    plain: dict[str, Any] = json_format.MessageToDict(files)
    return plain


def by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in items}


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of 1.0 means something else in `new`, or is not there."""
    found = []
    new_files = by_name(new["file"])
    for name, old_file in by_name(old["file"]).items():
        new_file = new_files.get(name, {})
        for kind in ("messageType", "enumType", "service"):
            new_items = by_name(new_file.get(kind, []))
            for item_name, item in by_name(old_file.get(kind, [])).items():
                found += _changed_parts(item_name, item, new_items.get(item_name, {}))
    return found


def _changed_parts(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields, values and methods by what identifies them: a field is its number, not its name alone."""
    found = [] if old.get("oneofDecl") in (None, new.get("oneofDecl")) else [f"{name}: its oneofs"]
    for part in ("field", "value", "method"):
        new_parts = by_name(new.get(part, []))
        found += [
            f"{name}.{part_name}"
            for part_name, item in by_name(old.get(part, [])).items()
            if new_parts.get(part_name) != item
        ]
        numbers = [item["number"] for item in new.get(part, []) if "number" in item]
        found += [f"{name}: number {n} twice" for n in set(numbers) if numbers.count(n) > 1]
    return found


def test_nothing_of_the_first_version_means_something_else() -> None:
    """Every field, value and call of 1.0 is there with its number, type, label and name."""
    assert changed(OLD, today()) == []


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("field", {"number": 99}),
        ("field", {"type": "TYPE_BYTES"}),
        ("field", {"label": "LABEL_REPEATED"}),
        ("field", {"name": "renamed"}),
        ("method", {"serverStreaming": True}),
        ("value", {"number": 42}),
    ],
)
def test_a_change_of_meaning_is_found(path: str, change: dict[str, Any]) -> None:
    """The comparison sees each kind of change that a peer of 1.0 would stumble over."""
    new = json.loads(json.dumps(OLD))
    parts = [
        item
        for file in new["file"]
        for kind in ("messageType", "enumType", "service")
        for message in file.get(kind, [])
        for item in message.get(path, [])
    ]
    parts[-1].update(change)
    assert len(changed(OLD, new)) == 1


def test_a_field_that_is_added_breaks_nothing() -> None:
    """A minor may add fields under new numbers."""
    new = json.loads(json.dumps(OLD))
    new["file"][0]["messageType"][0]["field"].append({"name": "patch", "number": 3})
    assert changed(OLD, new) == []


def test_what_is_signed_has_the_fields_of_the_first_version() -> None:
    """A field more or less in a signed record is another major: the older side could not verify it."""
    for kind, names in SIGNED_1_0.items():
        assert [field.name for field in dataclasses.fields(kind)] == names.split(), kind


@pytest.mark.parametrize("value", SIGNED, ids=lambda value: type(value).__name__)
def test_an_unknown_field_in_what_is_signed_is_refused(value: object) -> None:
    """Half of a signed sentence is another sentence: it is refused with the field's number."""
    assert convert.decode(type(value), convert.encode(value)) == value
    with pytest.raises(RemoteError, match=r"number 1000.* install the other side's version"):
        convert.decode(type(value), convert.encode(value) + UNKNOWN)


def test_an_unknown_field_deep_in_an_order_is_refused() -> None:
    """Also in its model, and in a link of the model's chain; and when it comes as an invitation."""
    for place in ("model", "link"):
        message = convert.write_message(an_order(model=MODEL))
        inner = message.model if place == "model" else message.model.chain[0]
        inner.MergeFromString(UNKNOWN)
        with pytest.raises(RemoteError, match="number 1000"):
            convert.decode(Order, message.SerializeToString())
        envelope = session_pb2.ToPeer(epoch=1, invitation=session_pb2.Invitation(order=message))
        with pytest.raises(RemoteError, match="number 1000"):
            convert.decode_to_peer(envelope.SerializeToString())


@pytest.mark.parametrize("value", SPOKEN, ids=lambda value: type(value).__name__)
def test_an_unknown_field_in_conversation_is_ignored(value: object) -> None:
    """A newer minor may say more than we understand."""
    assert convert.decode(type(value), convert.encode(value) + UNKNOWN) == value


def test_an_unknown_field_beside_a_body_is_ignored() -> None:
    """So in both envelopes."""
    raw = convert.encode_to_peer(3, core.Superseded("x"))
    assert convert.decode_to_peer(raw + UNKNOWN) == (3, core.Superseded("x"))
    raw = convert.encode_from_peer(core.Goodbye("x"))
    assert convert.decode_from_peer(raw + UNKNOWN) == core.Goodbye("x")
