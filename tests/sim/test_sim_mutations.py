"""Faults planted in a copy of the core: each has to be caught, and the untouched copy has to pass.

The tree itself is never changed: the package's rooms are copied to a temporary folder that comes
first on the other process's path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "methods", "sim")
SEEDS = 300


@dataclass(frozen=True)
class Mutation:
    """One planted fault: in `file` of the core, `before` becomes `after`."""

    name: str
    file: str
    before: str
    after: str


MUTATIONS = (
    Mutation(
        "skip the journal",
        "driver.py",
        "self._journal.append([entry_of(event) for event in batch])",
        "[entry_of(event) for event in batch]",
    ),
    Mutation(
        "act before the journal",
        "driver.py",
        """                self._journal.append([entry_of(event) for event in batch])
                for event in batch:
                    self.state, effects = self._step(self.state, event)
                    for effect in effects:
                        self._actor.perform(effect)
""",
        """                for event in batch:
                    self.state, effects = self._step(self.state, event)
                    for effect in effects:
                        self._actor.perform(effect)
                self._journal.append([entry_of(event) for event in batch])
""",
    ),
    Mutation(
        "count twice",
        "versions.py",
        "late=tuple(update for update in run.late if update.order not in counted),",
        "late=run.late,",
    ),
    Mutation(
        "drop the late list",
        "uploads.py",
        "run = replace(run, late=(*run.late, _update(event, order)))",
        "run = replace(run, late=())",
    ),
    Mutation(
        "ignore the quorum",
        "quorum.py",
        "    if len(present) < quorum:\n",
        '    if present:\n        return ""\n    if len(present) < quorum:\n',
    ),
    Mutation(
        "forget a refusal",
        "seats.py",
        "run = replace(run, excluded=put(run.excluded, site, exclusion))",
        "run = replace(run, excluded=run.excluded)",
    ),
    Mutation(
        "take the wrong base version",
        "uploads.py",
        "base_version=order.model.version if order.model else 0,",
        "base_version=0,",
    ),
)
"""What a simulation has to find."""

CLOCK = Mutation(
    "read a clock",
    "transitions.py",
    "    state = replace(state, now_ms=max(state.now_ms, event.at_ms))\n",
    "    import time\n\n    state = replace(state, now_ms=time.time_ns() // 1_000_000)\n",
)
"""What the architecture's import table has to find."""


def copied(folder: Path, mutation: Mutation | None) -> Path:
    """The rooms that a simulation needs, with the fault planted."""
    package = folder / "fedtrain"
    package.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "fedtrain" / name, package / name)
    for room in ROOMS:
        shutil.copytree(
            ROOT / "fedtrain" / room, package / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    if mutation is not None:
        path = package / "core" / mutation.file
        text = path.read_text()
        assert text.count(mutation.before) == 1, f"{mutation.name}: the place to change is not there"
        path.write_text(text.replace(mutation.before, mutation.after))
    return folder


def simulated(folder: Path, seeds: int) -> subprocess.CompletedProcess[str]:
    """Worlds that run the copy."""
    where = "import fedtrain.core, fedtrain.sim.__main__ as m; print(fedtrain.core.__path__[0]); "
    program = f"{where} raise SystemExit(m.main(['--seeds', '{seeds}']))"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(folder)), f"another copy was run: {done.stdout}{done.stderr}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_planted_faults_are_caught(mutation: Mutation, tmp_path: Path) -> None:
    """A few hundred worlds find every planted fault, and say which invariant it breaks."""
    done = simulated(copied(tmp_path, mutation), SEEDS)
    assert done.returncode == 1, f"{mutation.name} survived: {done.stdout}"
    assert "repeat it: python -m fedtrain.sim --seed" in done.stderr
    assert "Violation: " in done.stderr, done.stderr


@pytest.mark.slow
def test_the_untouched_copy_is_not_caught(tmp_path: Path) -> None:
    """Without a planted fault the same worlds hold."""
    done = simulated(copied(tmp_path, None), SEEDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [CLOCK, None], ids=["planted", "untouched"])
def test_a_clock_in_the_core_is_caught(mutation: Mutation | None, tmp_path: Path) -> None:
    """The architecture's own test, run on the copy, refuses a core that reads a clock, and only that."""
    folder = copied(tmp_path, mutation)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_architecture.py", folder / "tests")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            "test_decisions_know_no_clock",
            "tests/test_architecture.py",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if mutation is None else 1), done.stdout
    assert ("transitions.py:" in done.stdout and "may not import time" in done.stdout) is bool(mutation)


def test_planted_faults_fit() -> None:
    """Every place that a mutation changes exists exactly once, so that none is planted in vain."""
    for mutation in (*MUTATIONS, CLOCK):
        text = (ROOT / "fedtrain" / "core" / mutation.file).read_text()
        assert text.count(mutation.before) == 1, mutation.name
        assert mutation.after not in text or mutation.after in mutation.before, mutation.name
