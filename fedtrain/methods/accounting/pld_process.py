"""The process that `pld.ask` starts: one question as JSON on standard input, one answer on standard output.

    {"events": [[noise multiplier, sampling rate, steps], ...], "delta": d}      -> epsilon
    {"epsilon": e, "delta": d, "sampling_rate": q, "steps": n, "enough": z}      -> noise multiplier

It ends itself should whoever asked be killed: its processor time is limited, and its memory too.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
from collections.abc import Iterable
from typing import Any

from fedtrain.methods.accounting.noise import smallest_noise

MEMORY_BYTES_MAX = 4 << 30
"""Distributions of usual runs take a few hundred MB; one that needs more would slow the whole machine."""


def epsilon_of(events: Iterable[tuple[float, float, int]], delta: float) -> float:
    """By dp-accounting, for neighbours that add or leave out one unit."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for noise_multiplier, rate, steps in events:
        event = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    return float(accountant.get_epsilon(delta))


def answer(question: dict[str, Any]) -> float:
    """Epsilon of a composition, or the noise for an epsilon."""
    delta = question["delta"]
    if "events" in question:
        return epsilon_of(question["events"], delta)
    rate, steps = question["sampling_rate"], question["steps"]
    return smallest_noise(
        lambda z: epsilon_of([(z, rate, steps)], delta), question["epsilon"], guess=question["enough"]
    )


def main() -> None:
    """Answer one question."""
    question = json.load(sys.stdin)
    seconds = math.ceil(question["limit_s"]) + 1
    with contextlib.suppress(ValueError, OSError):  # a lower limit stands already
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    print(json.dumps({"answer": answer(question)}))


if __name__ == "__main__":
    main()
