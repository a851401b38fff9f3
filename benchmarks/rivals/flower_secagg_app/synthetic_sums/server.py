"""Server side: federated averaging of sums that SecAgg+ unmasks; notes when each round begins.

Every site has a share of every other's keys, and as many shares unmask as fedtrain asks for among so many
sites, so that both do the same cryptography. All other settings are Flower's defaults: 22 bits in a ring
of 32.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.common import FitIns, Parameters, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

TENSORS = 16

app = ServerApp()


class TimedAverage(FedAvg):
    """`FedAvg` without evaluation; one line with the clock at the start of each round and at the end."""

    def __init__(self, sites: int, initial: Parameters, times: str) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=sites,
            min_available_clients=sites,
            initial_parameters=initial,
            on_fit_config_fn=lambda server_round: {"server-round": server_round},
        )
        self._times = times
        self.summed = 0

    def note(self) -> None:
        """Write the clock down."""
        with open(self._times, "a") as file:
            file.write(f"{time.time()}\n")

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        self.note()
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.summed += 1
        return super().aggregate_fit(server_round, results, failures)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds of one run. Raises if one of them was given up, which Flower only logs."""
    settings: dict[str, Any] = dict(context.run_config)
    sites, rounds = int(settings["sites"]), int(settings["rounds"])
    whole = np.random.default_rng(1).standard_normal(int(settings["parameters"]), np.float32)
    initial = ndarrays_to_parameters(list(np.array_split(whole, TENSORS)))
    strategy = TimedAverage(sites, initial, str(settings["times"]))
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
    threshold = min(sites, math.ceil(0.6 * sites) + 1) / sites
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(1.0, threshold))(grid, legacy)
    if strategy.summed != rounds:
        raise RuntimeError(f"{strategy.summed} of {rounds} rounds were summed")
    strategy.note()
