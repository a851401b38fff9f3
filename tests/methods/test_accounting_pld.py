"""Epsilon by loss distributions, and the process that reckons it: right, and never longer than its limit.

Time limits of tests are generous; the only short ones are those that are meant to run out.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accounting_oracles import ORACLES, Oracle, steps_of

from fedtrain.core.charges import CLOSED, Mechanism
from fedtrain.methods.accounting import epsilon_pld, epsilon_rdp, noise, pld, pld_process, solve_noise
from fedtrain.methods.accounting.composition import noises

LONG_S = 60.0


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_tight_epsilon_is_the_oracle(oracle: Oracle) -> None:
    """To a thousandth, and not above the Renyi bound; reckoned by the code that the process runs."""
    steps = noises(steps_of(oracle))
    assert steps is not None
    found = pld_process.epsilon_of(pld.events_of(steps), oracle.delta)
    assert found == pytest.approx(oracle.pld, abs=1e-3)
    assert found < epsilon_rdp(steps_of(oracle), oracle.delta)


def test_the_process_answers() -> None:
    """The whole way, through another process, to the oracle's digits."""
    found = epsilon_pld(steps_of(ORACLES[0]), 1e-5, LONG_S)
    assert (found.by, found.note) == ("pld", "") and found.epsilon == pytest.approx(1.51537, abs=1e-3)


@pytest.mark.slow
def test_mixed_mechanisms_are_composed() -> None:
    """Two runs of other noise together spend more than each and less than their sum."""
    one, other = (_sampled(noise, rate, 200) for noise, rate in ((1.1, 0.01), (1.5, 0.05)))
    alone = [epsilon_pld([(m, 1)], 1e-5, LONG_S).epsilon for m in (one, other)]
    both = epsilon_pld([(one, 1), (other, 1)], 1e-5, LONG_S)
    assert both.by == "pld" and max(alone) < both.epsilon < sum(alone)


def test_steps_without_sampling_are_one_gaussian() -> None:
    """Of any noise: 100 at 10 and 4 at 2 are one at 1/sqrt(2), which is one distribution to make."""
    steps = noises([(_sampled(10.0, 1.0, 100), 1), (_sampled(2.0, 1.0, 4), 1), (_sampled(1.1, 0.1, 7), 2)])
    assert steps is not None
    assert pld.events_of(steps) == ((pytest.approx(math.sqrt(0.5)), 1.0, 1), (1.1, 0.1, 14))


def test_out_of_time_is_the_renyi_bound_and_says_so() -> None:
    """A process cannot even start in a hundredth of a second: the bound is by RDP, with the reason."""
    composition = [(_sampled(1.05, 0.013, 321), 1)]
    found = epsilon_pld(composition, 1e-5, 0.01)
    assert found.by == "rdp" and "no answer within 0.01 s" in found.note
    assert found.epsilon == epsilon_rdp(composition, 1e-5)


@pytest.mark.slow
def test_a_question_that_takes_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process is killed, not waited for, and nothing of it stays: it would have slept for an hour."""
    marker = tmp_path / "began"
    (tmp_path / "stuck.py").write_text(
        f"import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(3600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pld, "PROCESS", "stuck")
    begin = time.monotonic()
    found = epsilon_pld([(_sampled(1.07, 0.017, 123), 1)], 1e-5, 3.0)
    assert found.by == "rdp" and time.monotonic() - begin < LONG_S
    if marker.exists():  # unless this machine took three seconds to start Python
        assert not Path(f"/proc/{marker.read_text()}").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"answer": "x"}', "[1]", "raise SystemExit('out of luck')"])
def test_a_broken_process_is_the_renyi_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """Whatever the process says or dies of, there is a bound, and a note."""
    body = text if text.startswith("raise") else f"print({text!r})"
    (tmp_path / "broken.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pld, "PROCESS", "broken")
    found = epsilon_pld([(_sampled(1.08, 0.018, 124), 1)], 1e-5, LONG_S)
    assert found.by == "rdp" and found.note
    assert "out of luck" in found.note or not text.startswith("raise")


def test_the_process_limits_itself() -> None:
    """Were its parent killed, its processor time would still end."""
    code = (
        "import io, json, resource, sys\nimport fedtrain.methods.accounting.pld_process as process\n"
        "sys.stdin = io.StringIO(json.dumps({'events': [], 'delta': 0.1, 'limit_s': 6.5}))\n"
        "process.answer = lambda question: 0.0\nprocess.main()\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S)
    assert done.stdout.split("\n")[1] == f"8 {pld_process.MEMORY_BYTES_MAX}", done.stderr


def test_what_has_no_loss_distribution_says_so() -> None:
    """Sums of discrete shares and what bounds nothing are told by RDP, with the reason, in no time."""
    detail = {"step": 2.0**-16, "elements": 1e6, "sites": 5.0, "dropouts_max": 0.0}
    found = epsilon_pld([(Mechanism("discrete-gaussian", "site", 1.0, 6.0, 1.0, 100, detail), 1)], 1e-5, 0.01)
    assert found.by == "rdp" and "Renyi curve only" in found.note and round(found.epsilon, 4) == 8.6037
    closed = epsilon_pld([(Mechanism(CLOSED, "site", 0.0, 0.0), 1)], 1e-5, 0.01)
    assert math.isinf(closed.epsilon) and closed.note
    assert epsilon_pld([], 1e-5, 0.01).epsilon == 0


@pytest.mark.slow
def test_tight_noise_is_less_noise() -> None:
    """Solved by loss distributions, in a process: the promise holds by them, with less noise than by RDP."""
    found = solve_noise(2.0, 1e-5, 0.05, 200, "pld", LONG_S)
    assert pld_process.epsilon_of([(found, 0.05, 200)], 1e-5) <= 2.0
    assert pld_process.epsilon_of([(found * 0.999, 0.05, 200)], 1e-5) > 2.0
    assert found < solve_noise(2.0, 1e-5, 0.05, 200, "rdp")


def test_tight_noise_out_of_time_is_more_noise() -> None:
    """Without an answer in time, the noise is the one by RDP, so the promise holds."""
    noise.solve_noise.cache_clear()
    assert solve_noise(2.5, 1e-5, 0.05, 200, "pld", 0.01) == solve_noise(2.5, 1e-5, 0.05, 200, "rdp")


def _sampled(noise_multiplier: float, rate: float, steps: int) -> Mechanism:
    return Mechanism("poisson-gaussian", "record", 1.0, noise_multiplier, rate, steps)
