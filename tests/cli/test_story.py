"""`audit show`: every kind of row has a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.cli.story import SENTENCES, site_of, tell
from fedtrain.core import canonical
from fedtrain.core.agent_events import AGENT_EVENTS
from fedtrain.core.events import EVENTS

# The journal holds no other numbers.
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def test_every_kind_has_a_sentence() -> None:
    """The table has the kinds of both machines and no others."""
    assert set(SENTENCES) == {*EVENTS, *AGENT_EVENTS}


@pytest.mark.parametrize("machine", [EVENTS, AGENT_EVENTS], ids=["coordinator", "site"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_event_falls_back_to_its_fields(machine: dict[str, type[Any]], data: st.DataObject) -> None:
    """A sentence names only fields that its kind has, whatever they hold. A site and a coordinator both
    have an `UploadRefused`: it is told alike."""
    kind = data.draw(st.sampled_from(sorted(machine)))
    payload = json.loads(canonical.encode(data.draw(st.builds(machine[kind]))))
    sentence = tell(kind, payload)
    assert not sentence.startswith(f"{kind} at_ms")
    assert "{" not in SENTENCES[kind] or "|" not in sentence or "|" in str(payload)


def test_a_sentence_is_plain() -> None:
    """Golden ones, with and without what may be left out."""
    boot = {"at_ms": 1, "epoch": 3, "place": "x"}
    assert tell("Booted", boot) == "the coordinator starts, in epoch 3"
    assert (
        tell("Booted", {**boot, "version": "1.1", "code": "ab" * 32})
        == "the coordinator starts, in epoch 3 with fedtrain 1.1, code abababababab..."
    )
    lost = {"site": "north", "reason": "left: is stopped"}
    assert tell("SiteLost", lost) == "north is gone: left: is stopped"


def test_what_fits_no_sentence_is_told_as_it_is() -> None:
    """An unknown kind, or one that lacks a field, comes as its bare fields."""
    assert tell("Later", {"a": 1, "b": None}) == "Later a 1"
    assert tell("SiteLost", {"site": "north"}) == "SiteLost site north"
    assert tell("SiteLost", "text") == "SiteLost text"


@pytest.mark.parametrize(
    ("payload", "site"),
    [
        ({"site": "north"}, "north"),
        ({"name": "op"}, "op"),
        ({"order": "run.1.2.west"}, "west"),
        ({"order": {"id": "run.1.2.west"}}, "west"),
        ({"result": {"order": "run.1.2.east"}}, "east"),
        ({"order": {"id": 3}}, ""),
        ([], ""),
    ],
)
def test_the_site_of_a_row(payload: Any, site: str) -> None:
    """A row is about the site that it names, or whose order it names."""
    assert site_of(payload) == site
