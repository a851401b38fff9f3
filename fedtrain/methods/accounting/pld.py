"""Epsilon by privacy loss distributions: tight, in a process of its own that is killed when its time is over.

Koskela, Jälkö and Honkela, Computing Tight Differential Privacy Guarantees Using FFT, 2020, arXiv:1906.03049;
Doroshenko, Ghazi, Kamath, Kumar and Manurangsi, Connect the Dots: Tighter Discrete Approximations of Privacy
Loss Distributions, 2022, arXiv:2207.04380. As dp-accounting computes them, rounded to the safe side.

How long it takes depends on the noise and on how many different mechanisms there are, and none of it can be
interrupted from within, so another process does it. Without an answer in time the Renyi bound is the answer,
and says so.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from fedtrain.errors import FedtrainError
from fedtrain.methods.accounting.composition import Composition, Noise, check_delta, noises
from fedtrain.methods.accounting.rdp import epsilon_rdp

LIMIT_S = 10.0
"""For one question, the start of the process with its imports (1.5 to 3 s) included."""

PROCESS = "fedtrain.methods.accounting.pld_process"

ANSWERS_MAX = 1_024


@dataclass(frozen=True)
class Bound:
    """An upper bound of epsilon.

    Attributes:
        epsilon: infinite if a mechanism bounds nothing.
        by: `pld` or `rdp`, the accountant whose bound it is.
        note: why it is not by PLD; "" where it is.
    """

    epsilon: float
    by: str
    note: str = ""


class NoAnswer(FedtrainError):
    """The process said nothing that can be used; the message tells why."""


def epsilon_pld(composition: Composition, delta: float, limit_s: float = LIMIT_S) -> Bound:
    """The tightest bound that can be had within `limit_s` seconds. Call it in a thread: it waits."""
    check_delta(delta)
    by_rdp = epsilon_rdp(composition, delta)
    steps = noises(composition)
    if steps is None or math.isinf(by_rdp):
        return Bound(math.inf, "rdp", "a mechanism bounds nothing")
    if any(noise.grid for noise in steps):
        return Bound(by_rdp, "rdp", "a sum of discrete Gaussian shares is known by its Renyi curve only")
    if not by_rdp:
        return Bound(0.0, "pld")
    try:
        by_pld = _epsilon(events_of(steps), delta, limit_s)
    except NoAnswer as error:
        return Bound(by_rdp, "rdp", str(error))
    if by_pld > by_rdp:
        return Bound(by_rdp, "rdp", "the grid of the privacy loss distribution is too coarse here")
    return Bound(by_pld, "pld")


Events = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps) of each."""


def events_of(steps: dict[Noise, int]) -> Events:
    """What the process is asked about: steps without sampling, of any noise, are one Gaussian together."""
    precision = math.fsum(count / n.noise_multiplier**2 for n, count in steps.items() if n.sampling_rate == 1)
    plain = ((1 / math.sqrt(precision), 1.0, 1),) if precision else ()
    sampled = sorted(
        (noise.noise_multiplier, noise.sampling_rate, count)
        for noise, count in steps.items()
        if noise.sampling_rate < 1 and count
    )
    return (*plain, *sampled)


@functools.lru_cache(maxsize=ANSWERS_MAX)
def _epsilon(events: Events, delta: float, limit_s: float) -> float:
    """Only answers are remembered, so a question that took too long is asked again."""
    return ask({"events": events, "delta": delta}, limit_s)


def ask(question: dict[str, Any], limit_s: float) -> float:
    """The number that a new process answers; `NoAnswer` after `limit_s` seconds, or if it fails."""
    command = [sys.executable, "-m", PROCESS]
    # One thread: the agent's machine has other work.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    text = json.dumps({**question, "limit_s": limit_s})
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=limit_s, env=environment
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"the PLD accountant had no answer within {limit_s:g} s") from None
    except OSError as error:
        raise NoAnswer(f"the PLD accountant cannot be started ({error.strerror or error})") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NoAnswer(f"the PLD accountant failed ({said[:200]})")
    try:
        return float(json.loads(done.stdout)["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise NoAnswer("the PLD accountant's answer cannot be read") from error
