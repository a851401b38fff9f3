"""Accounting: which epsilon, at a delta, the mechanisms of a ledger amount to.

Neighbours are data with one unit more or less.

    rdp       Renyi curves, added up: fast, a little loose; the gate of every charge
    pld       privacy loss distributions: tight, slow, in a process of its own with a hard time limit
    exact     the Gaussian mechanism without sampling, in closed form: a third opinion
    discrete  sums of discrete Gaussian shares on an integer grid
    noise     the other way: the noise that a target epsilon needs

A composition is a sequence of (mechanism, count); `mechanism.steps` are counted within. A mechanism that is
not understood bounds nothing, so its epsilon is infinite. The accountant for Gaussian DP by a central limit
theorem is not here: it reports less than what is spent.

dp-accounting and scipy are imported when a question needs them, because they take a second or two.
"""

from fedtrain.core.charges import CLOSED
from fedtrain.methods.accounting.composition import Composition, grouped
from fedtrain.methods.accounting.discrete import discrete_gaussian_epsilon
from fedtrain.methods.accounting.exact import exact_gaussian_delta, exact_gaussian_epsilon
from fedtrain.methods.accounting.noise import solve_noise
from fedtrain.methods.accounting.pld import LIMIT_S, Bound, epsilon_pld
from fedtrain.methods.accounting.rdp import epsilon_rdp

__all__ = [
    "CLOSED",
    "LIMIT_S",
    "Bound",
    "Composition",
    "discrete_gaussian_epsilon",
    "epsilon_pld",
    "epsilon_rdp",
    "exact_gaussian_delta",
    "exact_gaussian_epsilon",
    "grouped",
    "solve_noise",
]
