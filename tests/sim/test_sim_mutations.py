"""Faults planted in a copy of the package: each has to be caught, and the untouched copy has to pass.

The tree itself is never changed: the package is copied to a temporary folder that comes first on the
other process's path. What is planted, and who has to catch it, is in `planted_faults`,
`planted_departures`, `planted_masks`, `planted_charges` and, for the vault's rows, in tests/storage.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted_charges import CHARGES
from planted_departures import CONSENT, GOING_BACK, LEAVING
from planted_faults import AGENT, CLOCK, CORE, DRIVER, SIMULATION, Mutation
from planted_masks import MASKED

from fedtrain.sim.plan import PRIVATE

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 60
TIME_S_MAX = 240

WITH_THE_COPY = """\
import sys, fedtrain
assert fedtrain.__path__[0] == sys.argv[1], f"another copy would be run: {fedtrain.__path__}"
"""


def storage_rows() -> tuple[Mutation, ...]:
    """The rows that tests/storage keeps beside the tests that catch them."""
    path = ROOT / "tests" / "storage" / "storage_mutations.py"
    spec = importlib.util.spec_from_file_location("storage_mutations", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return tuple(Mutation(row.name, row.file, row.before, row.after, row.catcher) for row in module.MUTATIONS)


MUTATIONS = (*DRIVER, *CORE, *LEAVING, *GOING_BACK, *AGENT, *CONSENT, *MASKED, *CHARGES, *storage_rows())
SIMULATED = [mutation for mutation in MUTATIONS if mutation.catcher == SIMULATION]
TESTED = [mutation for mutation in MUTATIONS if mutation.catcher != SIMULATION]


def named(mutation: Mutation) -> str:
    return mutation.name


def copied(folder: Path, mutation: Mutation | None = None) -> Path:
    """The package in the folder, with the fault planted. Compiled files come along: they save time."""
    shutil.copytree(ROOT / "fedtrain", folder / "fedtrain")
    if mutation is not None:
        path = folder / "fedtrain" / mutation.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutation.before) == 1, f"{mutation.name}: the place to change is not there"
        planted = text.replace(mutation.before, mutation.after)
        compile(planted, str(path), "exec")  # a copy that cannot be read would be caught by anything
        path.write_text(planted, encoding="utf-8")
    return folder


def run_with(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own that imports the copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, "-c", WITH_THE_COPY + program, str(folder / "fedtrain"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_S_MAX,
    )


def simulated(folder: Path, first: int, seeds: int) -> subprocess.CompletedProcess[str]:
    """Worlds that run the copy, one after the other up to the first that fails."""
    program = "from fedtrain.sim.__main__ import main; raise SystemExit(main(sys.argv[2:]))"
    return run_with(folder, program, "--first", str(first), "--seeds", str(seeds), "--jobs", "1")


def catch_with(folder: Path, *catchers: str) -> subprocess.CompletedProcess[str]:
    """Tests of this tree that run against the copy."""
    program = "import pytest; raise SystemExit(pytest.main(sys.argv[2:]))"
    here = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    brief = ["-n0", "--assert=plain", "--tb=line"]
    nodes = [str(ROOT / catcher) for catcher in catchers]
    return run_with(folder, program, *here, *brief, *nodes)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", SIMULATED, ids=named)
def test_the_simulation_catches(mutation: Mutation, tmp_path: Path) -> None:
    """Some dozens of worlds find the fault, and say which invariant it breaks."""
    done = simulated(copied(tmp_path, mutation), mutation.seed, SEEDS)
    assert done.returncode == 1, f"{mutation.name} survived: {done.stdout}{done.stderr}"
    assert "repeat it: python -m fedtrain.sim --seed" in done.stderr
    assert "Violation: " in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mutation", TESTED, ids=named)
def test_its_test_catches(mutation: Mutation, tmp_path: Path) -> None:
    """The test that stands for it fails: it does not merely find nothing to run or to import."""
    done = catch_with(copied(tmp_path, mutation), mutation.catcher)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, f"{mutation.name} survived: {done.stdout}"
    assert " failed" in done.stdout.splitlines()[-1], done.stdout


@pytest.mark.slow
def test_the_untouched_copy_is_not_caught_by_worlds(tmp_path: Path) -> None:
    """Without a planted fault worlds hold, among them those that catch one first."""
    folder, seeds = copied(tmp_path), [mutation.seed for mutation in SIMULATED]
    for first, most in ((1, max(s for s in seeds if s <= PRIVATE)), (PRIVATE + 1, max(seeds))):
        done = simulated(folder, first, most - first + 1)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_untouched_copy_is_not_caught_by_tests(tmp_path: Path) -> None:
    """Without a planted fault every one of those tests passes."""
    done = catch_with(copied(tmp_path), *sorted({mutation.catcher for mutation in TESTED}))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [CLOCK, None], ids=["planted", "untouched"])
def test_a_clock_in_the_core_is_caught(mutation: Mutation | None, tmp_path: Path) -> None:
    """The architecture's own test, run on the copy, refuses a core that reads a clock, and only that."""
    folder = copied(tmp_path, mutation)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / CLOCK.catcher, folder / "tests")
    words = ["-n0", "-p", "no:cacheprovider", "-k", "test_decisions_know_no_clock", CLOCK.catcher]
    done = run_with(folder, "import pytest; raise SystemExit(pytest.main(sys.argv[2:]))", *words)
    assert done.returncode == (0 if mutation is None else 1), done.stdout
    assert ("transitions.py:" in done.stdout and "may not import time" in done.stdout) is bool(mutation)


def test_planted_faults_fit() -> None:
    """There are enough of them, also of the vault's; each place exists once, and none is there already."""
    assert len(MUTATIONS) >= 20 and len(storage_rows()) >= 8
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    for mutation in (*MUTATIONS, CLOCK):
        text = (ROOT / "fedtrain" / mutation.file).read_text(encoding="utf-8")
        assert text.count(mutation.before) == 1, f"{mutation.name}: {text.count(mutation.before)} places"
        assert text.count(mutation.after) == 0 or mutation.after in mutation.before, mutation.name
        named_file = mutation.catcher.split("::")[0]
        assert mutation.catcher == SIMULATION or (ROOT / named_file).is_file(), mutation.name
