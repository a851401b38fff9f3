"""P8: seconds of a masked round against a plain one, and against Flower's SecAgg+ in the same run.

    python benchmarks/masked.py [--quick] [--case SITESxMILLIONS ...] [--rivals DIR | --no-rivals]

No training; real processes on loopback, fedtrain with mutual TLS, Flower without. A masked round has the key
exchange, the masks at every site, the signed survivor set, the shares and the unmasking in it. Three runs
take turns, all with int8 downwards:

    masked       16-bit integers under masks (19 bits on the wire for 8 sites)
    plain        the same 16-bit integers without masks: what masks alone cost
    plain int8   the default codec, which cannot be summed: what a run gives up for masks

A round is from one version to the next, the median after warm-up; core-seconds are of all processes. Flower
masks 22 bits in a ring of 32 with weights that change every round, in deployment mode, with a share of every
key at every site and our threshold. One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from consortium import Consortium, Outcome, Work, emit, median_seconds
from rivals import flower
from rivals.environment import RivalFailed, cache_folder, prepare
from round_seconds import MILLION, _case

QUICK = ((4, 1),)
FULL = ((4, 1), (8, 1), (4, 25), (8, 25))

CODEC = "fixed16s21"
"""Reaches to 2^-6: the synthetic updates stay below 0.003."""

MASKED, PLAIN, INT8 = "masked", "plain", "plain int8"
WORKS = {MASKED: (CODEC, True), PLAIN: (CODEC, False), INT8: ("int8", False)}
SECAGG = "Flower SecAgg+"

PLAIN_GOAL = 2.0
"""At most so many times the plain round, at 25 million parameters."""

RIVAL_GOAL = 10.0
"""At least so many times faster than SecAgg+, at a million."""

RIVAL_ROUNDS = {True: 2, False: 4}
"""With `--quick` and without; the first one is not counted."""


class Case:
    """One size of consortium and model."""

    def __init__(self, sites: int, millions: int, quick: bool) -> None:
        self.sites = sites
        self.millions = millions
        self.seconds: dict[str, list[float]] = {}
        self.core_seconds: dict[str, list[float]] = {}
        self.bytes_up: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._repetitions = 1 if quick else 2
        self._rival_rounds = RIVAL_ROUNDS[quick]
        self._rounds = (5 if quick else 8) if millions == 1 else (2 if quick else 4)

    def run(self, rival: tuple[Path, str] | str | None) -> None:
        """fedtrain's runs in turns, then the rival at a million parameters."""
        with (
            tempfile.TemporaryDirectory(prefix="masked-") as name,
            Consortium(Path(name), self.sites) as consortium,
        ):
            for repetition in range(self._repetitions):
                for system, (codec, masked) in WORKS.items():
                    self._ours(consortium, system, repetition, codec, masked)
        if rival is not None and self.millions == 1:
            self._rival(rival)

    def _ours(self, consortium: Consortium, system: str, repetition: int, codec: str, masked: bool) -> None:
        run = f"{system.replace(' ', '-')}-{repetition}"
        work = Work(run, self.millions * MILLION, self._rounds + 2, codec, "int8", masked)
        try:
            outcome = consortium.measure(work)
        except RuntimeError as error:
            self.failures[system] = str(error)
            self._emit(system, failure=str(error))
            return
        self.core_seconds.setdefault(system, []).append(outcome.core_seconds)
        self.bytes_up[system] = self._bytes_up(outcome)
        self._note(
            system,
            median_seconds(outcome.rounds),
            core_seconds=round(outcome.core_seconds, 3),
            bytes_up_per_parameter=round(self.bytes_up[system], 4),
        )

    def _bytes_up(self, outcome: Outcome) -> float:
        """One site's upload per parameter, median over rounds."""
        found = [entry["bytes_up"] / self.sites / (self.millions * MILLION) for entry in outcome.rounds[1:]]
        return statistics.median(found)

    def _rival(self, rival: tuple[Path, str] | str) -> None:
        try:
            if isinstance(rival, str):
                raise RivalFailed(rival)
            seconds = flower.measure(
                rival[0], self.sites, self.millions * MILLION, self._rival_rounds, 1500.0, flower.SECAGG_APP
            )
            self._note(SECAGG, statistics.median(seconds[1:]), version=rival[1])
        except RivalFailed as error:
            self.failures[SECAGG] = str(error)
            self._emit(SECAGG, failure=str(error))

    def _note(self, system: str, seconds: float, **more: Any) -> None:
        self.seconds.setdefault(system, []).append(seconds)
        self._emit(system, seconds=round(seconds, 4), **more)

    def _emit(self, system: str, **more: Any) -> None:
        case = {"sites": self.sites, "parameters": self.millions * MILLION}
        emit({"benchmark": "masked", "system": system, **case, **more})

    def median(self, system: str) -> float | None:
        """Seconds, median over repetitions, None where it failed."""
        found = self.seconds.get(system)
        return statistics.median(found) if found else None

    def verdicts(self) -> Iterable[str]:
        """One sentence a ratio, with its goal where there is one for this size."""
        masked, theirs = self.median(MASKED), self.median(SECAGG)
        if masked is None:
            return
        for system in (PLAIN, INT8):
            plain = self.median(system)
            if plain is None:
                continue
            cores = min(self.core_seconds[MASKED]) / min(self.core_seconds[system])
            goal = (
                _verdict(masked <= PLAIN_GOAL * plain, f"<= {PLAIN_GOAL:g}") if self._has_goal(system) else ""
            )
            yield f"masked: {masked / plain:.2f}x the time of {system}{goal}, {cores:.2f}x its core-seconds"
        if theirs is not None:
            goal = _verdict(theirs / masked >= RIVAL_GOAL, f">= {RIVAL_GOAL:g}")
            yield f"masked is {theirs / masked:.1f}x faster than {SECAGG}{goal}"

    def _has_goal(self, system: str) -> bool:
        return system == PLAIN and self.millions == 25


def _verdict(met: bool, goal: str) -> str:
    return f" (goal {goal}): {'met' if met else 'MISSED'}"


def find_flower(folder: Path) -> tuple[Path, str] | str:
    """Flower's programs and version, installed if need be, or why it cannot run."""
    try:
        return prepare(folder, "flower", flower.PACKAGE, flower.WISHES)
    except RivalFailed as error:
        return str(error)


def print_table(cases: list[Case]) -> None:
    """Seconds per round by case and system, bytes, then the goals."""
    systems = [*WORKS, SECAGG]
    print(f"\n{'sites x params':>14} " + " ".join(f"{name:>16}" for name in systems))
    for case in cases:
        cells = []
        for name in systems:
            seconds = case.median(name)
            cells.append(f"{seconds:.3f} s" if seconds else "failed" if name in case.failures else "-")
        print(f"{case.sites:>6} x {case.millions:>4}M " + " ".join(f"{cell:>16}" for cell in cells))
    for case in cases:
        print(f"\n{case.sites} x {case.millions}M")
        sent = ", ".join(f"{name} {count:.3f}" for name, count in case.bytes_up.items())
        print(f"  bytes up per parameter and site: {sent}")
        for verdict in case.verdicts():
            print(f"  {verdict}")
        for system, reason in case.failures.items():
            print(f"  {system} could not be measured: {reason}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Masked rounds against plain ones and Flower (P8).")
    parser.add_argument("--quick", action="store_true", help="4 sites, a million parameters, once")
    parser.add_argument("--case", type=_case, action="append", help="SITESxMILLIONS instead, repeatable")
    parser.add_argument("--rivals", type=Path, default=cache_folder(), help="where their environments live")
    parser.add_argument("--no-rivals", action="store_true", help="only fedtrain")
    options = parser.parse_args()
    rival = None if options.no_rivals else find_flower(options.rivals)
    cases = [
        Case(sites, millions, options.quick)
        for sites, millions in options.case or (QUICK if options.quick else FULL)
    ]
    for case in cases:
        case.run(rival)
    print_table(cases)


if __name__ == "__main__":
    main()
