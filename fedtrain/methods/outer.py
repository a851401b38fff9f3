"""The coordinator's step along the combined pseudo-gradient, as pure functions on blocks.

The pseudo-gradient is Delta = theta_start - theta_end, so a step subtracts. Steps work element by
element in float32, in place, and need no more of the past than their named state vectors.

`average` is federated averaging (McMahan et al., Communication-Efficient Learning of Deep
Networks from Decentralized Data, 2017, arXiv 1602.05629), `nesterov` is DiLoCo's (Douillard et
al., 2023, arXiv 2311.08105), `adam` is FedAdam (Reddi et al., Adaptive Federated Optimization,
2021, arXiv 2003.00295). The published settings of `nesterov` belong to large models that start
from a pre-trained or long-warmed state; small models from random weights do better with `average`,
at least for some first rounds, for which the caller then chooses `average`. The best eta grows
with the number of sites: 0.4, 0.6, 0.6, 0.8 for 1, 2, 4, 8 (Charles et al., 2025, arXiv 2503.09799).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedtrain.errors import ConfigError
from fedtrain.methods.vectors import Floats, unknown_name

Parameters = Mapping[str, float]
State = Mapping[str, Floats]
Step = Callable[[Floats, Floats, State, Parameters, Floats], None]


@dataclass(frozen=True)
class Parameter:
    """A setting's default and range, `low` <= value < `high`."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class OuterOptimiser:
    """One row of `OUTER`.

    Attributes:
        name: as the run names it.
        state: names of the vectors it keeps between rounds, each as long as the model.
        parameters: its settings.
        initial: the value that a state vector begins with, from its name and the settings.
        update: see `step`.
    """

    name: str
    state: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    initial: Callable[[str, Parameters], float]
    update: Step

    def settings(self, given: Parameters) -> dict[str, float]:
        """All parameters, `given` ones over the defaults; `ConfigError` for unknown or out of range."""
        chosen = {name: parameter.default for name, parameter in self.parameters.items()}
        for name, value in given.items():
            if name not in self.parameters:
                raise unknown_name(f"parameter of outer optimiser {self.name!r}", name, self.parameters)
            low, high = self.parameters[name].low, self.parameters[name].high
            if not low <= value < high:
                raise ConfigError(
                    f"{self.name}: {name} is {value!r}, it must be at least {low:g} and below {high:g}"
                )
            chosen[name] = float(value)
        return chosen

    def step(
        self, theta: Floats, delta: Floats, state: State, params: Parameters, scratch: Floats | None = None
    ) -> None:
        """Move `theta` and `state` one round on, in place.

        theta, delta, scratch and each vector of `state` have shape (n,). `delta`, the combined
        pseudo-gradient, and `scratch` are used up. `params` comes from `settings`.
        """
        self.update(theta, delta, state, params, np.empty_like(theta) if scratch is None else scratch)


def outer(name: str) -> OuterOptimiser:
    """The outer optimiser of this name; `ConfigError` names the valid ones and the nearest."""
    if name not in OUTER:
        raise unknown_name("outer optimiser", name, OUTER)
    return OUTER[name]


def _zero(name: str, params: Parameters) -> float:
    return 0.0


def _average(theta: Floats, delta: Floats, state: State, params: Parameters, scratch: Floats) -> None:
    """theta <- theta - eta Delta."""
    if params["eta"] != 1:
        np.multiply(delta, params["eta"], out=delta)
    np.subtract(theta, delta, out=theta)


def _nesterov(theta: Floats, delta: Floats, state: State, params: Parameters, scratch: Floats) -> None:
    """v <- mu v + Delta; theta <- theta - eta (Delta + mu v)."""
    velocity = state["velocity"]
    np.multiply(velocity, params["mu"], out=velocity)
    np.add(velocity, delta, out=velocity)
    np.multiply(velocity, params["mu"], out=scratch)
    np.add(delta, scratch, out=delta)
    np.multiply(delta, params["eta"], out=delta)
    np.subtract(theta, delta, out=theta)


def _adam(theta: Floats, delta: Floats, state: State, params: Parameters, scratch: Floats) -> None:
    """m <- b1 m + (1-b1) Delta; v <- b2 v + (1-b2) Delta^2; theta <- theta - eta m / (sqrt(v) + tau).

    As in the paper there is no bias correction; instead v begins at tau^2 (its Algorithm 2).
    """
    mean, variance = state["mean"], state["variance"]
    np.multiply(mean, params["beta1"], out=mean)
    np.multiply(delta, 1 - params["beta1"], out=scratch)
    np.add(mean, scratch, out=mean)
    np.multiply(delta, delta, out=delta)
    np.multiply(delta, 1 - params["beta2"], out=delta)
    np.multiply(variance, params["beta2"], out=variance)
    np.add(variance, delta, out=variance)
    np.sqrt(variance, out=scratch)
    np.add(scratch, params["tau"], out=scratch)
    np.multiply(mean, params["eta"], out=delta)
    np.divide(delta, scratch, out=delta)
    np.subtract(theta, delta, out=theta)


def _adam_initial(name: str, params: Parameters) -> float:
    return params["tau"] ** 2 if name == "variance" else 0.0


_ETA_MIN = 1e-9

OUTER: dict[str, OuterOptimiser] = {
    row.name: row
    for row in (
        OuterOptimiser("average", (), {"eta": Parameter(1.0, _ETA_MIN, 10)}, _zero, _average),
        OuterOptimiser(
            "nesterov",
            ("velocity",),
            {"eta": Parameter(0.7, _ETA_MIN, 10), "mu": Parameter(0.9, 0, 1)},
            _zero,
            _nesterov,
        ),
        OuterOptimiser(
            "adam",
            ("mean", "variance"),
            {
                # The paper tunes eta per task; its best values lie between 0.003 and 0.1.
                "eta": Parameter(0.01, _ETA_MIN, 10),
                "beta1": Parameter(0.9, 0, 1),
                "beta2": Parameter(0.99, 0, 1),
                "tau": Parameter(1e-3, 1e-9, 1),
            },
            _adam_initial,
            _adam,
        ),
    )
}
