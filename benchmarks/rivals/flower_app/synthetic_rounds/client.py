"""Site's side: no training, but weights that change each round and differ between sites."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The weights that came, moved by a number of this site and round."""
    server_round = int(message.content["config"]["server-round"])
    step = np.float32(1e-3 * (server_round + (context.node_id % 1000) / 1000))
    arrays = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"weight": 1})})
    return Message(content=content, reply_to=message)
