"""P1: seconds per round without training, against Flower, NVFlare and bare gRPC in the same run.

    python benchmarks/round_seconds.py [--quick] [--case SITESxMILLIONS ...] [--rivals DIR | --no-rivals]

Everything is real processes on loopback. fedtrain and bare gRPC speak mutual TLS, the rivals do not.
All move float32 both ways; fedtrain is measured with int8 both ways as well. A round is from one
version to the next, the median after warm-up. Within a case fedtrain and bare gRPC alternate; each
ratio is of figures from the same case of the same run. One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bare_grpc
from consortium import WARM_UP_ROUNDS, Consortium, Work, emit, median_seconds
from rivals import flower, nvflare
from rivals.environment import RivalFailed, cache_folder, prepare

MILLION = 1_000_000
QUICK = ((2, 1), (8, 1), (2, 25))
FULL = tuple((sites, millions) for millions in (1, 25, 124) for sites in (2, 4, 8))
"""(sites, millions of parameters)."""

FLOAT32, INT8, BARE = "fedtrain float32", "fedtrain int8", "bare gRPC"
RIVALS = {"Flower": flower, "NVFlare": nvflare}
RIVAL_WARM_UP_ROUNDS = 1

GOALS: dict[tuple[str, str], Any] = {
    ("Flower", FLOAT32): lambda sites, millions: {1: 50.0, 25: 10.0 if sites == 8 else None}.get(millions),
    ("NVFlare", FLOAT32): lambda sites, millions: {1: 15.0, 25: 5.0 if sites == 8 else None}.get(millions),
    ("Flower", INT8): lambda sites, millions: 20.0 if millions == 124 else None,
}
"""(rival, ours) -> how many times faster we mean to be."""

BARE_GOAL = 1.5
"""At most so many times the seconds of bare gRPC with the same bytes."""


class Case:
    """One size of consortium and model: measures, and keeps what was found.

    Args:
        rivals: name -> (program folder, version), or the reason why it cannot run here.
    """

    def __init__(
        self, sites: int, millions: int, quick: bool, rivals: dict[str, tuple[Path, str] | str]
    ) -> None:
        self.sites = sites
        self.millions = millions
        self.seconds: dict[str, list[float]] = {}
        self.core_seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._quick = quick
        self._rivals = rivals
        self._parameters = millions * MILLION

    @property
    def repetitions(self) -> int:
        """How often fedtrain and bare gRPC take turns."""
        return 2 if self._quick or self.millions > 25 else 3

    @property
    def rounds(self) -> int:
        """Counted rounds of one repetition of ours."""
        return {1: 12, 25: 5}.get(self.millions, 4)

    def run(self) -> None:
        """All systems, ours and the limit alternating, around one rival after the other."""
        with (
            tempfile.TemporaryDirectory(prefix="round-seconds-") as name,
            Consortium(Path(name), self.sites) as consortium,
        ):
            for repetition in range(self.repetitions):
                self._ours(consortium, FLOAT32, "float32", repetition)
                self._bare()
                self._ours(consortium, INT8, "int8", repetition)
        for rival in self._rivals:
            self._rival(rival)

    def _ours(self, consortium: Consortium, system: str, codec: str, repetition: int) -> None:
        rounds = self.rounds + WARM_UP_ROUNDS
        work = Work(f"{codec}-{repetition}", self._parameters, rounds, codec, codec)
        try:
            outcome = consortium.measure(work)
            self._note(system, median_seconds(outcome.rounds), core_seconds=round(outcome.core_seconds, 3))
        except RuntimeError as error:
            self._fail(system, str(error))

    def _bare(self) -> None:
        found = bare_grpc.measure(self.sites, 4 * self._parameters, self.rounds)
        self._note(BARE, found["seconds"], core_seconds=round(found["core_seconds"], 3))

    def _rival(self, rival: str) -> None:
        found = self._rivals[rival]
        if isinstance(found, str):
            self._fail(rival, found)
            return
        counted = 2 if self._quick else 3 if self.millions > 25 else 5
        try:
            seconds = RIVALS[rival].measure(
                found[0], self.sites, self._parameters, counted + RIVAL_WARM_UP_ROUNDS, limit_s=1500.0
            )
            self._note(rival, statistics.median(seconds[RIVAL_WARM_UP_ROUNDS:]), version=found[1])
        except RivalFailed as error:
            self._fail(rival, str(error))

    def _note(self, system: str, seconds: float, **more: Any) -> None:
        self.seconds.setdefault(system, []).append(seconds)
        if "core_seconds" in more:
            least = self.core_seconds.get(system, more["core_seconds"])
            self.core_seconds[system] = min(least, more["core_seconds"])
        self._emit(system, seconds=round(seconds, 4), **more)

    def _fail(self, system: str, reason: str) -> None:
        self.failures[system] = reason
        self._emit(system, failure=reason)

    def _emit(self, system: str, **more: Any) -> None:
        case = {"sites": self.sites, "parameters": self._parameters}
        emit({"benchmark": "round_seconds", "system": system, **case, **more})

    def median(self, system: str) -> float | None:
        """Median over repetitions, None where it failed."""
        found = self.seconds.get(system)
        return statistics.median(found) if found else None

    def verdicts(self) -> Iterable[str]:
        """One sentence a goal: the ratio, the goal, and whether it is met."""
        ours, bare = self.median(FLOAT32), self.median(BARE)
        if ours and bare:
            met = "met" if ours <= BARE_GOAL * bare else "MISSED"
            cores = self.core_seconds[FLOAT32] / self.core_seconds[BARE]
            yield f"{ours / bare:.2f}x bare gRPC (goal <= {BARE_GOAL}): {met}; {cores:.2f}x its core-seconds"
        for (rival, system), goal_of in GOALS.items():
            theirs, mine, goal = self.median(rival), self.median(system), goal_of(self.sites, self.millions)
            if theirs and mine:
                verdict = (
                    f" (goal >= {goal:.0f}): {'met' if theirs / mine >= goal else 'MISSED'}" if goal else ""
                )
                yield f"{system} {theirs / mine:.1f}x faster than {rival}{verdict}"


def find_rivals(folder: Path) -> dict[str, tuple[Path, str] | str]:
    """Rivals with their programs, installed if need be, or why they cannot run."""
    found: dict[str, tuple[Path, str] | str] = {}
    for name, rival in RIVALS.items():
        try:
            found[name] = prepare(folder, name.lower(), rival.PACKAGE, rival.WISHES)
        except RivalFailed as error:
            found[name] = str(error)
    return found


def print_table(cases: list[Case], rivals: dict[str, tuple[Path, str] | str]) -> None:
    """Seconds per round by case and system, then the goals."""
    systems = [FLOAT32, INT8, BARE, *rivals]
    print(f"\n{'sites x params':>14} " + " ".join(f"{name:>16}" for name in systems))
    for case in cases:
        cells = [f"{s:.3f} s" if (s := case.median(name)) else "failed" for name in systems]
        print(f"{case.sites:>6} x {case.millions:>4}M " + " ".join(f"{cell:>16}" for cell in cells))
    for case in cases:
        print(f"\n{case.sites} x {case.millions}M")
        for verdict in case.verdicts():
            print(f"  {verdict}")
        for system, reason in case.failures.items():
            print(f"  {system} could not be measured: {reason}")


def _case(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no case; say e.g. 8x25 for 8 sites and 25 million parameters"
        )
    return int(match[1]), int(match[2])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Seconds per round against rivals and bare gRPC (P1).")
    parser.add_argument("--quick", action="store_true", help="three small cases, few rounds")
    parser.add_argument("--case", type=_case, action="append", help="SITESxMILLIONS instead, repeatable")
    parser.add_argument("--rivals", type=Path, default=cache_folder(), help="where their environments live")
    parser.add_argument("--no-rivals", action="store_true", help="only fedtrain and bare gRPC")
    options = parser.parse_args()
    rivals = {} if options.no_rivals else find_rivals(options.rivals)
    cases = [
        Case(sites, millions, options.quick, rivals)
        for sites, millions in options.case or (QUICK if options.quick else FULL)
    ]
    for case in cases:
        case.run()
    print_table(cases, rivals)


if __name__ == "__main__":
    main()
