"""Chaos in short: a sample of the matrix and a soak of three minutes, judged from the journals alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.matrix import Verdict, choose, run_matrix
from benchmarks.chaos.soak import run_soak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]

SEED = 3
CELLS = ("^both-resets-fast", "^peers-partitions-20mbit", "^coordinator-none-1mbit")
"""Every kind of kill, every kind of loss and every speed, once."""

SOAK_MINUTES = 3.0


def test_sample_of_the_matrix(tmp_path: Path) -> None:
    """Three cells: the runs complete, nothing is lost or counted twice, the bits are those of peace."""
    told: list[Verdict] = []
    verdicts = run_matrix(tmp_path, choose(CELLS, None, SEED), SEED, told.append)
    assert told == verdicts and len(verdicts) == 3
    wrong = [(v.cell.name, v.course.trouble, *map(str, v.findings)) for v in verdicts if not v.held]
    assert not wrong
    assert all(verdict.course.struck for verdict in verdicts)


def test_soak(tmp_path: Path) -> None:
    """Three minutes of random blows: rounds go on, every invariant holds, nothing grows but the journal."""
    soak = run_soak(tmp_path, SOAK_MINUTES, SEED, print)
    assert not soak.faults
    assert soak.rounds and soak.blows and soak.series
