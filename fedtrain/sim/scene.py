"""What every part of one world shares, and the transcript that a person reads when a seed fails."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

from fedtrain.core import agent
from fedtrain.core import effects as fx
from fedtrain.core import events as ev
from fedtrain.core import messages as msg
from fedtrain.sim.clock import START_MS, Clock
from fedtrain.sim.plan import Plan

_SHOWN = (
    "site",
    "order",
    "run",
    "round",
    "attempt",
    "version",
    "timer",
    "session",
    "outcome",
    "accepted",
    "blob",
    "digest",
    "model_digest",
    "reason",
    "reasons",
    "holding",
    "epoch",
)
"""Fields that a line of the transcript shows, where a thing has them."""


@dataclass(frozen=True)
class Line:
    """One thing that happened: when, to whom, what, and the value that it was about."""

    at_ms: int
    who: str
    what: str
    value: object = None

    def text(self) -> str:
        """The line as a person reads it; time in seconds since the world began."""
        about = "" if self.value is None else describe(self.value)
        return f"{(self.at_ms - START_MS) / 1000:9.3f}  {self.who:<12} {self.what:<9} {about}".rstrip()


class Transcript:
    """Everything that happened, in order. Lines become text only when somebody asks."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def note(self, at_ms: int, who: str, what: str, value: object = None) -> None:
        """Write one line."""
        self.lines.append(Line(at_ms, who, what, value))

    def text(self, num_lines: int = 0) -> str:
        """The last lines as text, or all of them."""
        return "\n".join(line.text() for line in self.lines[-num_lines:])

    def digest(self) -> str:
        """SHA-256 of the whole text: equal for equal seeds."""
        total = hashlib.sha256()
        for line in self.lines:
            total.update(line.text().encode() + b"\n")
        return total.hexdigest()


@dataclass
class Scene:
    """Shared by all parts of a world.

    Attributes:
        chance: the world's only source of chance.
        faults: kind of fault -> how often it was injected.
        events: events that the machines stepped through.
    """

    plan: Plan
    chance: random.Random
    clock: Clock = field(default_factory=Clock)
    transcript: Transcript = field(default_factory=Transcript)
    faults: Counter[str] = field(default_factory=Counter)
    events: int = 0

    @property
    def clear(self) -> bool:
        """Whether faults are over: from here on every run has to come to its end."""
        return self.clock.now_ms >= self.plan.clear_ms

    def note(self, who: str, what: str, value: object = None) -> None:
        """Write one line of the transcript."""
        self.transcript.note(self.clock.now_ms, who, what, value)

    def strikes(self, probability: float, fault: str) -> bool:
        """Whether a fault of this kind happens now. Never once faults are over."""
        if self.clear or self.chance.random() >= probability:
            return False
        self.faults[fault] += 1
        return True


def describe(value: object) -> str:
    """A value in one line: its kind and the fields that tell it from others."""
    if isinstance(value, str):
        return value
    parts = [type(value).__name__]
    order = getattr(value, "order", None) or getattr(getattr(value, "result", None), "order", None)
    if order is not None and not isinstance(order, str):
        parts.append(f"order={order.id} parent={order.parent or '-'} returned={list(order.returned)}")
    for name in _SHOWN:
        shown = getattr(value, name, None)
        if shown in (None, "", ()) or (name == "order" and not isinstance(shown, str)):
            continue
        is_digest = name in ("blob", "digest", "model_digest")
        parts.append(f"{name}={str(shown)[:12] if is_digest else shown}")
    if isinstance(value, agent.ResultTaken):
        parts.append(f"order={order} {value.result.failure or value.result.digest[:12]}")
    if isinstance(value, fx.Aggregate):
        parts.append(f"counts={[(item.order, round(item.weight, 3)) for item in value.contributions]}")
    if isinstance(value, (ev.RunSubmitted, msg.Heartbeat)):
        parts.append(str(value))
    return " ".join(parts)
