"""One spelling for every value: round trips of every event, and strict reading."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from test_core_agent import FIRST, UPDATE

from fedtrain.core import canonical
from fedtrain.core.agent import AGENT_EVENTS
from fedtrain.core.contract import Contract, Rights
from fedtrain.core.events import EVENTS, Booted, EvaluationStored
from fedtrain.core.orders import Order, OrderKind, Result, order_id, parse_order_id
from fedtrain.errors import LocalError, RemoteError

KINDS = {**EVENTS, **AGENT_EVENTS}
NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(str, st.text(max_size=12))
st.register_type_strategy(
    Contract,
    st.builds(
        Contract,
        datasets=st.dictionaries(st.text(max_size=5), st.builds(Rights, read=st.booleans()), max_size=2),
    ),
)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_event_comes_back(kind: type[Any], data: st.DataObject) -> None:
    """Encode, decode, encode: the same value and the same bytes, for every event of both machines."""
    event = data.draw(st.builds(kind))
    octets = canonical.encode(event)
    back = canonical.decode(kind, octets)
    assert back == event
    assert canonical.encode(back) == octets


def test_the_spelling() -> None:
    """Sorted keys, no spaces, enumerations by value, text as ASCII escapes."""
    assert canonical.encode({"b": (1, 2.0), "a": OrderKind.SEED, "c": None, "d": "ä"}) == (
        b'{"a":"seed","b":[1,2.0],"c":null,"d":"\\u00e4"}'
    )
    octets = b'{"at_ms":5,"code":"","epoch":2,"place":"here","version":""}'
    assert canonical.encode(Booted(5, 2, "here")) == octets
    assert canonical.digest(Booted(5, 2, "here")) == hashlib.sha256(octets).hexdigest()


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), b"bytes", 1j])
def test_what_has_no_spelling(value: object) -> None:
    """Values without a spelling are our own bug."""
    with pytest.raises(LocalError):
        canonical.encode({"x": value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"at_ms":1,"order":"x","loss":NaN,"count":1}', "NaN is not a number here"),
        ('{"at_ms":1,"order":"x","loss":-Infinity,"count":1}', "not a number here"),
        ('{"at_ms":1,"order":"x","loss":1e999,"count":1}', "too large"),
        ('{"at_ms":1,"order":"x","loss":"1","count":1}', "loss: expected float, found str"),
        ('{"at_ms":1,"order":"x","loss":true,"count":1}', "loss: expected float, found bool"),
        ('{"at_ms":1.0,"order":"x","loss":1,"count":1}', "at_ms: expected int, found float"),
        ('{"at_ms":true,"order":"x","loss":1,"count":1}', "at_ms: expected int, found bool"),
        ('{"at_ms":1,"order":null,"loss":1,"count":1}', "order: expected str, found NoneType"),
        ('{"at_ms":1,"order":"x","loss":1}', "field 'count' is missing"),
        ('{"at_ms":1,"order":"x","loss":1,"count":1,"more":1}', "unknown field 'more'"),
        ("[]", "expected an object, found list"),
        ("7", "expected an object, found int"),
    ],
)
def test_reading_is_strict(text: str, words: str) -> None:
    """A document of another process is refused in words that name the place."""
    with pytest.raises(RemoteError, match=words):
        canonical.decode(EvaluationStored, text)


def test_huge_numbers_are_refused() -> None:
    """An integer beyond float's range in a float's place is a wrong document, not a crash."""
    for digits in (400, 5_000):
        text = '{"at_ms":1,"order":"x","loss":1' + "0" * digits + ',"count":1}'
        with pytest.raises(RemoteError):
            canonical.decode(EvaluationStored, text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "dance"}, "'dance' is not one of seed, train, evaluate"),
        ({"kind": []}, "is not one of"),
        ({"cohort": "ab"}, "Order.cohort: expected a list, found str"),
        ({"cohort": ["a", 1]}, r"Order.cohort\[1\]: expected str, found int"),
        ({"model": {"version": 1}}, "Order.model: field 'digest' is missing"),
        ({"evaluate": 1}, "Order.evaluate: expected bool, found int"),
    ],
)
def test_nested_places_are_named(change: dict[str, object], words: str) -> None:
    """The error says where in the document the wrong value stands."""
    plain = canonical.to_plain(FIRST) | change
    with pytest.raises(RemoteError, match=words):
        canonical.decode(Order, json.dumps(plain))


def test_chains_are_triples() -> None:
    """A fixed-length list has to have its length."""
    plain = canonical.to_plain(FIRST)
    plain["model"]["chain"] = [[0, "b"]]
    with pytest.raises(RemoteError, match=r"chain\[0\]: expected 3 items, found 2"):
        canonical.decode(Order, json.dumps(plain))


def test_maps_are_objects() -> None:
    """A mapping's place holds an object."""
    with pytest.raises(RemoteError, match=r"Contract\.datasets: expected an object, found list"):
        canonical.decode(Contract, '{"datasets":[]}')


def test_defaults_may_be_left_out() -> None:
    """Fields with a default need not be there; optional ones may be null."""
    assert canonical.decode(Result, '{"order":"x","eval_loss":null}') == Result("x")
    assert canonical.decode(Result, canonical.encode(UPDATE)) == UPDATE


def test_the_types_that_a_document_may_have() -> None:
    """An integer stands for a float of the same value; `Any` takes everything."""

    assert canonical.decode(EvaluationStored, '{"at_ms":1,"order":"x","loss":2,"count":1}').loss == 2.0
    assert canonical.from_plain(Loose, {"what": [1]}) == Loose([1])


@dataclass(frozen=True)
class Loose:
    """Something with a field of any kind."""

    what: Any


@given(run=NAMES, round_index=st.integers(0, 999_999_999), attempt=st.integers(0, 999_999_999), site=NAMES)
def test_order_ids_split_back(run: str, round_index: int, attempt: int, site: str) -> None:
    """An order's id names run, round, attempt and site without doubt."""
    assert parse_order_id(order_id(run, round_index, attempt, site)) == (run, round_index, attempt, site)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run.1.1",
        "run.1.1.a.b",
        "run.-1.1.a",
        "run.1.1.A",
        "../run.1.1.a",
        "run.1.1.a\n",
        "run.1.1.a-",
        "r.1.1." + "a" * 64,
    ],
)
def test_what_is_no_order_id(text: str) -> None:
    """Names become file names and log lines, so nothing else passes."""
    with pytest.raises(RemoteError, match="is not an order's id"):
        parse_order_id(text)


@dataclass(frozen=True)
class Inner:
    """Part of `Outer`."""

    kind: OrderKind
    count: int = 0


@dataclass(frozen=True)
class Outer:
    """A document with another inside, behind a mapping, a list and an option."""

    parts: Mapping[str, tuple[Inner, ...]]
    last: Inner | None = None


def test_a_shape_is_of_the_whole_tree() -> None:
    """Names, types, defaults and enumerations of every dataclass inside make the shape; nothing else does."""
    assert canonical.shape(Outer) == canonical.shape(Outer) != canonical.shape(Inner)
    shapes = {canonical.shape(Outer)}

    @dataclass(frozen=True)
    class Inner2:
        kind: OrderKind
        amount: int = 0

    for hint in (int, str, Inner2, Mapping[str, Inner], Mapping[str, Inner2], tuple[Inner, ...]):
        made = make_dataclass("Outer", [("parts", hint), ("last", Inner | None, None)], frozen=True)
        shapes.add(canonical.shape(made))
    assert len(shapes) == 7
