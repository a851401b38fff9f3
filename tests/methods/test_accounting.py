"""Epsilon by Renyi curves, by the closed form and for discrete sums: oracles, and what must hold for any.

The oracles are for neighbours with one unit more or less, from dp-accounting and Opacus.
"""

from __future__ import annotations

import math
import subprocess
import sys

import mpmath
import pytest
from accounting_oracles import BY_RATE, ORACLES, Oracle, steps_of
from hypothesis import given, settings, strategies as st

from fedtrain.core.charges import CLOSED, Charge, Mechanism, serving
from fedtrain.errors import ConfigError, LocalError
from fedtrain.methods.accounting import (
    discrete_gaussian_epsilon,
    epsilon_rdp,
    exact_gaussian_delta,
    exact_gaussian_epsilon,
    grouped,
    solve_noise,
)
from fedtrain.methods.accounting.discrete import Grid
from fedtrain.methods.accounting.noise import NOISE_MIN, smallest_noise


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_renyi_epsilon_is_the_oracle(oracle: Oracle) -> None:
    """To the oracle's last digit below a sampling rate of a tenth, within 2 % from there on."""
    found = epsilon_rdp(steps_of(oracle), oracle.delta)
    if oracle.rate < 0.1:
        assert abs(found - oracle.rdp) <= 0.5e-5 + 1e-6
    else:
        assert found == pytest.approx(oracle.rdp, rel=0.02)


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_renyi_epsilon_is_what_opacus_finds(oracle: Oracle) -> None:
    """Another implementation agrees to a millionth below a rate of a tenth, and within 2 % above."""
    from opacus.accountants.analysis import rdp
    from opacus.accountants.rdp import RDPAccountant

    orders = RDPAccountant.DEFAULT_ALPHAS
    curve = rdp.compute_rdp(
        q=oracle.rate, noise_multiplier=oracle.noise_multiplier, steps=oracle.steps, orders=orders
    )
    theirs, _ = rdp.get_privacy_spent(orders=orders, rdp=curve, delta=oracle.delta)
    ours = epsilon_rdp(steps_of(oracle), oracle.delta)
    assert abs(ours - theirs) <= (1e-6 if oracle.rate < 0.1 else 0.02 * theirs)


@pytest.mark.parametrize("oracle", BY_RATE[1.0], ids=str)
def test_closed_form_agrees_where_nothing_is_sampled(oracle: Oracle) -> None:
    """Two routes to one number: the closed form is the loss distribution's epsilon, below the Renyi bound."""
    found = exact_gaussian_epsilon(math.sqrt(oracle.steps) / oracle.noise_multiplier, oracle.delta)
    assert found == pytest.approx(oracle.pld, abs=1e-5)
    assert found < epsilon_rdp(steps_of(oracle), oracle.delta)


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 3.0, 40.0, 900.0])
def test_closed_form_holds_in_the_tails(mu: float, epsilon: float) -> None:
    """Within a millionth of sixty digits' arithmetic, also where e^epsilon or the tail leaves the doubles."""
    with mpmath.workdps(60):
        first = mpmath.ncdf(mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu)
        second = mpmath.exp(epsilon) * mpmath.ncdf(-mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu)
        expected = float(first - second)
    assert exact_gaussian_delta(mu, epsilon) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@given(mu=st.floats(0.01, 30), delta=st.floats(1e-12, 0.3))
@settings(max_examples=60, deadline=None)
def test_closed_form_inverts_from_above(mu: float, delta: float) -> None:
    """Delta at the epsilon that is told is never above the delta asked for, and hardly below."""
    epsilon = exact_gaussian_epsilon(mu, delta)
    assert exact_gaussian_delta(mu, epsilon) <= delta
    if epsilon > 0:
        assert exact_gaussian_delta(mu, epsilon * (1 - 1e-6)) > delta


# -- sums of discrete Gaussian shares ------------------------------------------------------------------


def test_discrete_sum_is_the_oracle() -> None:
    """Noise of six clips, a million numbers on a grid of 2^-16: 8.6037, and 8.6033 without a grid."""
    found = discrete_gaussian_epsilon(6.0, 100, 1e-5, elements=10**6, step=2.0**-16, sites=5)
    plain = epsilon_rdp([(Mechanism("gaussian", "site", 1.0, 6.0, 1.0, 100), 1)], 1e-5)
    assert (round(found, 4), round(plain, 4)) == (8.6037, 8.6033)


@given(
    noise=st.floats(0.5, 20),
    sites=st.integers(2, 200),
    step=st.floats(1e-7, 0.5),
    elements=st.integers(1, 10**8),
)
@settings(max_examples=60, deadline=None)
def test_a_grid_never_costs_less(noise: float, sites: int, step: float, elements: int) -> None:
    """A sum of shares on a grid spends at least what one continuous Gaussian spends."""
    plain = epsilon_rdp([(Mechanism("gaussian", "site", 1.0, noise), 1)], 1e-6)
    found = discrete_gaussian_epsilon(noise, 1, 1e-6, elements=elements, step=step, sites=sites)
    assert found >= plain
    finer = discrete_gaussian_epsilon(noise, 1, 1e-6, elements=elements, step=step / 4, sites=sites)
    assert finer <= found


def test_difference_of_shares_is_counted() -> None:
    """By hand: with a deviation of one step each, two shares are 10 exp(-pi^2) from a discrete Gaussian."""
    grid = Grid(step=1.0, elements=1.0, shares=2.0, dropouts_max=0.0, clip=1.0, parts=1.0)
    assert grid.tau(1.0) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert grid.tau(0.1) > 8 and grid.tau(10.0) < 1e-100


def test_rounding_lengthens_by_the_tighter_bound() -> None:
    """By hand: of a clip of 10 steps in 4 numbers, (10 + 2)^2 against 100 + 1 + 1 * (10 + 1)."""
    grid = Grid(step=0.1, elements=4.0, shares=2.0, dropouts_max=0.0, clip=1.0, parts=1.0)
    assert grid.norm == pytest.approx(math.sqrt(112))
    two = Grid(step=0.1, elements=4.0, shares=2.0, dropouts_max=0.0, clip=2.0, parts=2.0)
    assert two.norm == pytest.approx(2 * math.sqrt(112))


def test_dropouts_weaken_each_share_and_not_the_promise() -> None:
    """The multiplier is of the sum without those that may drop out, so provisioning costs no epsilon."""
    strict, loose = (
        discrete_gaussian_epsilon(1.0, 10, 1e-6, elements=10**6, step=2.0**-12, sites=10, dropouts_max=most)
        for most in (0, 4)
    )
    assert loose == pytest.approx(strict, rel=1e-9)


@pytest.mark.parametrize("detail", [{}, {"step": 0.0}, {"sites": 2.0, "dropouts_max": 2.0}])
def test_discrete_sum_without_its_numbers_bounds_nothing(detail: dict[str, float]) -> None:
    """A row that does not say grid, size and shares cannot be reckoned, so it is infinite."""
    whole = {"step": 2.0**-16, "elements": 1e6, "sites": 5.0, "dropouts_max": 1.0}
    found = Mechanism("discrete-gaussian", "site", 1.0, 6.0, detail={**whole, **detail} if detail else {})
    assert math.isinf(epsilon_rdp([(found, 1)], 1e-5))
    good = Mechanism("discrete-gaussian", "site", 1.0, 6.0, detail=whole)
    assert math.isfinite(epsilon_rdp([(good, 1)], 1e-5))


# -- compositions --------------------------------------------------------------------------------------


def test_steps_and_counts_are_one() -> None:
    """1000 steps in one row, 100 rows of 10, and 50 counts of 20 spend the same."""
    whole, ten, twenty = (Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.01, n) for n in (1000, 10, 20))
    expected = epsilon_rdp([(whole, 1)], 1e-5)
    assert epsilon_rdp(grouped([ten] * 100), 1e-5) == pytest.approx(expected, rel=1e-12)
    assert epsilon_rdp([(twenty, 50)], 1e-5) == pytest.approx(expected, rel=1e-12)


def test_grouping_counts_equal_mechanisms_whichever_object_they_are() -> None:
    """Equal values in other objects are one entry; a difference in any number is another."""
    plain = [Mechanism("gaussian", "site", 1.0, 2.0) for _ in range(3)]
    other = Mechanism("gaussian", "site", 1.0, 2.0, detail={"parts": 2.0})
    found = grouped([plain[0], other, plain[1], plain[0], plain[2]])
    assert found == ((plain[0], 4), (other, 1))


def test_nothing_spends_nothing() -> None:
    """No mechanism, or none of its steps, costs no epsilon."""
    assert epsilon_rdp([], 1e-5) == 0
    assert epsilon_rdp([(Mechanism("gaussian", "site", 1.0, 2.0), 0)], 1e-5) == 0


@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism(CLOSED, "site", 0.0, 0.0),
        Mechanism("laplace", "record", 1.0, 1.0),
        Mechanism("gaussian", "record", 1.0, 0.0),
        Mechanism("gaussian", "record", 1.0, 1.0, 0.5),
        Mechanism("poisson-gaussian", "record", 1.0, 1.0, 0.0),
        Mechanism("poisson-gaussian", "record", 1.0, 1.0, 1.5),
        Mechanism("poisson-gaussian", "record", 1.0, math.nan, 0.5),
        Mechanism("poisson-gaussian", "record", 1.0, 1.0, 0.5, -1),
    ],
    ids=str,
)
def test_what_is_not_understood_bounds_nothing(mechanism: Mechanism) -> None:
    """One such row makes the whole infinite, whatever stands beside it."""
    good = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.01, 10)
    assert math.isinf(epsilon_rdp([(good, 1), (mechanism, 1)], 1e-5))


def test_a_repair_counts_for_every_unit() -> None:
    """The charge that closes a budget leaves nothing of it, in whichever unit it is kept."""
    charge = Charge("", 0, "", "", "corpus", Mechanism(CLOSED, "site", 0.0, 0.0))
    for unit in ("record", "group", "site"):
        assert math.isinf(epsilon_rdp(grouped(serving(unit, [charge])[0]), 1e-5))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    """There is no finite epsilon at a delta of 0, and none is needed at 1."""
    with pytest.raises(LocalError):
        epsilon_rdp([(Mechanism("gaussian", "site", 1.0, 2.0), 1)], delta)


# -- noise for a target --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"), [(8.0, 0.02, 1000), (1.0, 0.01, 3000), (3.0, 1.0, 100), (0.1, 1.0, 10)]
)
def test_solved_noise_keeps_the_promise_and_wastes_nothing(epsilon: float, rate: float, steps: int) -> None:
    """Epsilon at the noise is never above the target; with a thousandth less noise it is."""
    noise = solve_noise(epsilon, 1e-5, rate, steps, "rdp")
    assert epsilon_rdp(_sampled(noise, rate, steps), 1e-5) <= epsilon
    assert epsilon_rdp(_sampled(noise * 0.999, rate, steps), 1e-5) > epsilon


def test_solved_noise_by_the_closed_form_where_nothing_is_sampled() -> None:
    """With every unit in every step the tight noise is the one that the closed form asks for."""
    noise = solve_noise(3.0, 1e-5, 1.0, 100, "pld")
    assert exact_gaussian_epsilon(10 / noise, 1e-5) <= 3.0 < exact_gaussian_epsilon(10 / noise / 0.999, 1e-5)
    assert noise < solve_noise(3.0, 1e-5, 1.0, 100, "rdp")


def test_targets_out_of_reach_are_told() -> None:
    """No noise is enough for an epsilon that no order of the curve can show; a huge one gets the least."""
    with pytest.raises(ConfigError, match="larger epsilon or delta, or for fewer steps"):
        solve_noise(1e-9, 1e-12, 1.0, 10**9, "rdp")
    assert solve_noise(900.0, 1e-5, 1.0, 1, "rdp") == NOISE_MIN
    with pytest.raises(LocalError):
        solve_noise(1.0, 1e-5, 0.0, 10, "rdp")
    with pytest.raises(LocalError, match="pld and rdp"):
        solve_noise(1.0, 1e-5, 0.5, 10, "gdp")


@given(target=st.floats(0.01, 50), scale=st.floats(0.3, 100), guess=st.floats(0.3, 1000))
@settings(max_examples=80, deadline=None)
def test_search_ends_on_the_safe_side(target: float, scale: float, guess: float) -> None:
    """On a known curve, from any guess: enough, at most a thousandth too much, in few questions."""
    asked = []

    def spent(noise: float) -> float:
        asked.append(noise)
        return math.inf if noise < 0.25 else scale / noise + scale / noise**2

    found = smallest_noise(spent, target, guess)
    assert spent(found) <= target
    assert found == NOISE_MIN or spent(max(0.25, found / 1.001)) > target or found <= 0.2501
    assert len(asked) < 40


def _sampled(noise: float, rate: float, steps: int) -> list[tuple[Mechanism, int]]:
    return [(Mechanism("poisson-gaussian", "record", 1.0, noise, rate, steps), 1)]


def test_importing_accounting_is_cheap() -> None:
    """The room is imported without dp-accounting, scipy or torch, so nobody's start waits for them."""
    heavy = "{'dp_accounting', 'scipy', 'torch', 'absl'}"
    code = f"import sys, fedtrain.methods.accounting; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_accounting_never_loads_torch() -> None:
    """Not even the questions themselves bring torch in."""
    code = (
        "import sys\nfrom fedtrain.core.charges import Mechanism\nfrom fedtrain.methods.accounting import *\n"
        "epsilon_rdp([(Mechanism('poisson-gaussian', 'record', 1.0, 1.1, 0.01, 10), 1)], 1e-5)\n"
        "import fedtrain.methods.accounting.pld_process as process\n"
        "process.answer({'events': [(1.1, 0.01, 10)], 'delta': 1e-5})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
