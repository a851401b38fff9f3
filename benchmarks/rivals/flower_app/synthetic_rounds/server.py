"""Server side: federated averaging that notes when each round begins."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

TENSORS = 16

app = ServerApp()


class TimedAverage(FedAvg):
    """`FedAvg` without evaluation; one line with the clock at the start of each round and at the end."""

    def __init__(self, sites: int, times: str) -> None:
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites, weighted_by_key="weight"
        )
        self._times = times

    def note(self) -> None:
        """Write the clock down."""
        with open(self._times, "a") as file:
            file.write(f"{time.time()}\n")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.note()
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds of one run."""
    settings: dict[str, Any] = dict(context.run_config)
    whole = np.random.default_rng(1).standard_normal(int(settings["parameters"]), np.float32)
    strategy = TimedAverage(int(settings["sites"]), str(settings["times"]))
    initial = ArrayRecord(list(np.array_split(whole, TENSORS)))
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=int(settings["rounds"]))
    strategy.note()
