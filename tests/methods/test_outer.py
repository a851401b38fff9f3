"""Outer optimisers: numbers by hand, and one conformance suite over `OUTER`."""

import numpy as np
import pytest

from fedtrain.errors import ConfigError
from fedtrain.methods.outer import OUTER, outer

NAMES = sorted(OUTER)


def fresh(name: str, count: int, params: dict[str, float]) -> dict[str, np.ndarray]:
    """State vectors as a run begins with."""
    row = outer(name)
    return {key: np.full(count, row.initial(key, params), np.float32) for key in row.state}


def run(name: str, deltas: list[float], **given: float) -> list[float]:
    """theta after each step, from 1."""
    params = outer(name).settings(given)
    theta, state, path = np.ones(1, np.float32), fresh(name, 1, params), []
    for delta in deltas:
        outer(name).step(theta, np.full(1, delta, np.float32), state, params)
        path.append(float(theta[0]))
    return path


def test_average_by_hand() -> None:
    """theta - eta Delta: 1 - 0.25, then - 0.5 x 0.5."""
    assert run("average", [0.25]) == [0.75]
    assert run("average", [0.5], eta=0.5) == [0.75]


def test_nesterov_by_hand() -> None:
    """v = 1, theta = 1 - 0.5 (1 + 0.5) = 0.25; then v = 1.5, theta = 0.25 - 0.5 (1 + 0.75) = -0.625."""
    assert run("nesterov", [1, 1], eta=0.5, mu=0.5) == [0.25, -0.625]


def test_nesterov_defaults_are_diloco() -> None:
    """eta 0.7 and mu 0.9: the first step moves by 0.7 x 1.9."""
    assert run("nesterov", [1])[0] == pytest.approx(1 - 0.7 * 1.9, rel=1e-6)


def test_adam_by_hand() -> None:
    """m = 0.5, v = 0.5 x 0.25 + 0.5 = 0.625: theta = 1 - 0.1 x 0.5 / (sqrt(0.625) + 0.5)."""
    (theta,) = run("adam", [1], eta=0.1, beta1=0.5, beta2=0.5, tau=0.5)
    assert theta == pytest.approx(1 - 0.1 * 0.5 / (0.625**0.5 + 0.5), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_against_the_pseudo_gradient(name: str) -> None:
    """A positive Delta lowers theta, a negative one raises it."""
    assert run(name, [0.5])[0] < 1 < run(name, [-0.5])[0]


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_per_element(name: str) -> None:
    """Cutting the vector gives the same bits, and a scratch buffer changes nothing."""
    rng = np.random.default_rng(2)
    params = outer(name).settings({})
    theta = rng.standard_normal(1000).astype(np.float32)
    whole, parts = theta.copy(), theta.copy()
    state, cut_state = fresh(name, 1000, params), fresh(name, 1000, params)
    for _ in range(3):
        delta = rng.standard_normal(1000).astype(np.float32)
        for at in (0, 300):
            end = 300 if at == 0 else 1000
            views = {key: vector[at:end] for key, vector in cut_state.items()}
            scratch = np.empty(end - at, np.float32)
            outer(name).step(parts[at:end], delta[at:end].copy(), views, params, scratch)
        outer(name).step(whole, delta.copy(), state, params)
    np.testing.assert_array_equal(whole, parts)
    assert whole.dtype == np.float32
    for key in state:
        np.testing.assert_array_equal(state[key], cut_state[key])


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_checked(name: str) -> None:
    """Defaults are valid; unknown, negative or non-finite settings are refused by name."""
    row = outer(name)
    assert set(row.settings({})) == set(row.parameters)
    assert row.settings({"eta": 0.5})["eta"] == 0.5
    with pytest.raises(ConfigError, match="did you mean 'eta'"):
        row.settings({"etaa": 0.5})
    for value in (-1, 0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="eta"):
            row.settings({"eta": value})


def test_unknown_names_propose_the_nearest() -> None:
    """The error names the valid ones and the nearest."""
    with pytest.raises(ConfigError, match=r"adam, average, nesterov.*'nesterov'"):
        outer("nesterow")
