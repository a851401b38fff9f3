"""What every part of one world shares, and the transcript that a person reads when a seed fails."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fedtrain.core import agent, effects as fx, events as ev, messages as msg
from fedtrain.sim.chance import Chance
from fedtrain.sim.clock import START_MS, Clock
from fedtrain.sim.keys import Notary
from fedtrain.sim.plan import Plan

_SHOWN = (
    "site",
    "name",
    "order",
    "run",
    "round",
    "attempt",
    "version",
    "timer",
    "topic",
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
        chance: the world's only source of chance, one stream per purpose and place.
        faults: kind of fault -> how often it was injected.
        struck: keys of all faults that struck, in order: what `--only` and `--without` choose from.
        events: events that the machines stepped through.
        notary: makes and checks signatures.
    """

    plan: Plan
    chance: Chance
    clock: Clock = field(default_factory=Clock)
    transcript: Transcript = field(default_factory=Transcript)
    faults: Counter[str] = field(default_factory=Counter)
    struck: list[str] = field(default_factory=list)
    events: int = 0
    notary: Notary = field(init=False)

    def __post_init__(self) -> None:
        self.notary = Notary(self.plan.seed)

    @property
    def clear(self) -> bool:
        """Whether faults are over: from here on every run has to come to its end."""
        return self.clock.now_ms >= self.plan.clear_ms

    def note(self, who: str, what: str, value: object = None) -> None:
        """Write one line of the transcript."""
        self.transcript.note(self.clock.now_ms, who, what, value)

    def strikes(self, probability: float, fault: str, about: str) -> random.Random | None:
        """The fault's own chance (how long, where) if a fault of this kind strikes now, else None.

        Never once faults are over. `about` says whom or what it strikes (a link, a site, an order):
        with the kind it makes the key by which this one fault can be left out, and the finer it is,
        the less another fault that is left out shifts it.
        """
        if self.clear or probability <= 0:
            return None
        key = self.chance.draw(probability, fault, about)
        return self._struck(fault, key) if key else None

    def recur(self, gap_ms: int, fault: str, about: str, strike: Callable[[random.Random], None]) -> None:
        """Let such a fault strike now and then, `gap_ms` apart on average, until faults are over."""
        delay_ms = int(self.chance.stream(f"gap of {fault}", about).expovariate(1 / gap_ms))
        if self.clock.now_ms + delay_ms >= self.plan.clear_ms:
            return

        def due() -> None:
            key = self.chance.draw(1.0, fault, about)
            if key:
                strike(self._struck(fault, key))
            self.recur(gap_ms, fault, about, strike)

        self.clock.after(delay_ms, due)

    def _struck(self, fault: str, key: str) -> random.Random:
        self.faults[fault] += 1
        self.struck.append(key)
        self.note("fault", "strikes", key)
        return self.chance.of(key)


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
