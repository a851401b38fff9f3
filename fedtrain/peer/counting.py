"""How much the data sets hold that the coordinator may know of: the trainer counts, never the agent.

The trainer that is at work anyway is asked, between two orders, so no round waits for a count and no
second trainer is started for it. A site's declaration grows by the counts as soon as they are there.

Units of privacy are counted apart, once per run, because the rate at which a step draws follows from them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace

from fedtrain.core.agent import AgentState
from fedtrain.errors import ConfigError, FedtrainError
from fedtrain.peer.jobs import in_thread
from fedtrain.peer.probing import ask_trainer
from fedtrain.peer.settings import AgentSettings

_log = logging.getLogger("fedtrain.peer")

COUNT_S = 20
"""For one data set. What is larger is not declared: half a count would make honest weights look wrong."""

PATIENCE_S = 3_600.0
"""For a trainer that is busy; it answers behind its order."""


def uncounted(state: AgentState) -> list[str]:
    """Data sets that the coordinator may know of, and whose size nobody has counted yet."""
    datasets = state.contract.datasets
    return sorted(name for name in datasets if datasets[name].discoverable and name not in state.examples)


def count_units(settings: AgentSettings, task: str, unit: str, stop: threading.Event) -> int:
    """Records or groups that a run's task finds in its data set. Blocks until a trainer has counted.

    Raises `ConfigError` where it cannot count, and as `ask_trainer` where none answers.
    """
    finding = ask_trainer(settings, 0, PATIENCE_S, stop, (task, unit))
    if finding.units_failure or finding.units < 1:
        why = finding.units_failure or "the task finds none"
        raise ConfigError(f"the units ({unit}) of the data set cannot be counted: {why}")
    return finding.units


async def count(settings: AgentSettings, known: Mapping[str, int], stop: threading.Event) -> dict[str, int]:
    """Data set -> examples, what is known among them; nothing new where no trainer answers.

    `stop` ends the wait; it is set before the caller is cancelled.
    """
    try:
        # A trainer runs: nothing is to be started, whoever starts trainers at this site.
        there = replace(settings, launch="external")
        finding = await in_thread(ask_trainer, there, COUNT_S, PATIENCE_S, stop)
    except FedtrainError as error:
        _log.info("the data was not counted, so no counts are declared for now: %s", error)
        return dict(known)
    found = {name: c.examples for name, c in finding.counts.items() if c.whole and not c.failure}
    return {**known, **found}
