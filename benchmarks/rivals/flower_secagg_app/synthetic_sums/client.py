"""Site's side: no training, but weights that change each round and differ between sites."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp


class Mover(NumPyClient):
    """Adds a number of this site and round to every weight."""

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        step = np.float32(1e-3 * (int(config["server-round"]) + (self._node_id % 1000) / 1000))
        return [array + step for array in parameters], 1, {}


def _client(context: Context) -> Client:
    return Mover(context.node_id).to_client()


app = ClientApp(client_fn=_client, mods=[secaggplus_mod])
