"""How long to wait: longer each time, when the other side says, and never all sites at once."""

from __future__ import annotations

import random


class Backoff:
    """Capped exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).

    Each pause is drawn evenly between nothing and the ceiling, so that after an outage the sites do
    not return in step.

    Args:
        first_s: the first ceiling; it doubles with every try.
        cap_s: the last one.
        chance: where the jitter comes from; nothing has to repeat it.
    """

    def __init__(self, first_s: float, cap_s: float, chance: random.Random | None = None) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._chance = chance or random.SystemRandom()
        self._ceiling_s = first_s

    def next_s(self, cap_s: float | None = None) -> float:
        """The next pause, in seconds; `cap_s` bounds this one more tightly than all."""
        ceiling_s = self._ceiling_s if cap_s is None else min(cap_s, self._ceiling_s)
        pause_s = self._chance.uniform(0.0, ceiling_s)
        self._ceiling_s = min(self._cap_s, 2 * self._ceiling_s)
        return pause_s

    def told_s(self, pause_s: float) -> float:
        """The pause that the other side asked for, and a little more; never less.

        It spreads its callers itself, so this says nothing about the next pause of our own.
        """
        return pause_s + self._chance.uniform(0.0, self._first_s)

    def reset(self) -> None:
        """It worked: the next trouble starts from the first ceiling again."""
        self._ceiling_s = self._first_s


def early_s(pause_s: float, chance: random.Random) -> float:
    """A pause of something regular, up to a fifth shorter: sites that came together drift apart."""
    return pause_s * chance.uniform(0.8, 1.0)
