"""A small site with a mailbox, on which tests post orders and read results as an agent would."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtrain.core.orders import ModelRef
from fedtrain.methods.layout import Layout
from fedtrain.methods.modelfile import ModelReader
from fedtrain.methods.updatefile import UpdateReader
from fedtrain.storage.mailbox import Mailbox, Order, OrderKind, Result
from fedtrain.trainer.checkpoints import Checkpoints
from fedtrain.trainer.data import read_datasets
from fedtrain.trainer.progress import OrderProgress
from fedtrain.trainer.session import Session

# Results depend on the number of threads, and idle ones that spin would slow the other tests.
torch.set_num_threads(1)

RUN, SITE = "tiny-run", "here"

LANGUAGE_TASK: dict[str, Any] = {
    "name": "causal_lm",
    "model": {"layers": 1, "heads": 2, "width": 16, "context": 16},
    "data": "corpus",
    "training": {"learning_rate": 0.01, "batch_size": 4, "warmup_steps": 4},
}
SYNTHETIC_TASK: dict[str, Any] = {
    "name": "synthetic",
    "model": {"parameters": 10_000, "tensors": 3},
    "training": {"tokens_per_step": 10},
}

PEER = """
site: here
datasets:
  corpus:
    path: texts/*.txt
    format: text
    rights: {execute: [causal_lm, gated_lm, synthetic]}
"""


def write_site(folder: Path) -> Path:
    """A peer.yaml and some 60 kB of repetitive text beside it."""
    chance = random.Random(5)
    words = ["federated", "site", "round", "update", "model", "and", "the", "of"]
    (folder / "texts").mkdir(parents=True)
    for name in ("a", "b"):
        text = " ".join(chance.choice(words) for _ in range(5_500))
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "peer.yaml").write_text(PEER)
    return folder / "peer.yaml"


@dataclass
class Site:
    """One mailbox, its trainer's session, and the public model that orders start from."""

    folder: Path
    peer: Path

    def __post_init__(self) -> None:
        self.mailbox = Mailbox(self.folder / "mailbox")
        self.mailbox.create()
        self.restart()

    def restart(self) -> None:
        """As if the trainer's process was started anew."""
        self.session = Session(read_datasets(self.peer), Checkpoints(self.mailbox.checkpoints), 1)

    def order(self, kind: str, round_index: int, **changes: Any) -> Order:
        """An order for this site; `task` may be a dictionary."""
        attempt = changes.pop("attempt", 1)
        task = changes.pop("task", LANGUAGE_TASK)
        return replace(
            Order(
                id=f"{RUN}.{round_index}.{attempt}.{SITE}",
                kind=OrderKind(kind),
                run=RUN,
                round=round_index,
                attempt=attempt,
                site=SITE,
                seed=1,
                model=None,
                steps=6,
                evaluate=False,
                parent="",
                returned=(),
                cohort=(SITE,),
                task=json.dumps(task, sort_keys=True),
                codec="int8",
                block_elements=4096,
                patience_ms=60_000,
            ),
            **changes,
        )

    def do(self, order: Order, model: Path | None = None, stop: threading.Event | None = None) -> Result:
        """Post, claim, carry out, publish: the result as the agent would take it."""
        self.mailbox.post(order, model)
        claim = self.mailbox.claim("test-trainer")
        assert claim is not None
        progress = OrderProgress(self.mailbox, order.id, order.steps, stop or threading.Event())
        result, file = self.session.work(claim, progress)
        assert self.mailbox.publish(result, file)
        return self.mailbox.take_result(order.id)[0]

    def update(self, order: Order) -> np.ndarray:
        """The decoded update of a done order."""
        _, path = self.mailbox.take_result(order.id)
        assert path is not None
        return decoded(path)

    def update_bytes(self, order: Order) -> bytes:
        """The update file of a done order, after a check of its digest."""
        result, path = self.mailbox.take_result(order.id)
        assert path is not None
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == result.digest
        return data

    def first_model(self, task: dict[str, Any] = LANGUAGE_TASK) -> tuple[Path, ModelRef]:
        """Do a seed order; the public model, out of the mailbox, and the reference to it."""
        order = self.order("seed", 0, task=task, steps=0)
        self.do(order)
        return self.take_model(order)

    def take_model(self, order: Order) -> tuple[Path, ModelRef]:
        """The model that a seed order has led to, out of the mailbox."""
        result, path = self.mailbox.take_result(order.id)
        assert result.failure == "" and path is not None
        layout = Layout.from_json(result.layout)
        model = path.rename(self.folder / "model.safetensors")
        self.mailbox.discard(order.id)
        with ModelReader(model) as reader:
            digest = reader.verify(layout)
        return model, ModelRef(0, digest, layout.digest, 0, ())


def decoded(path: Path) -> np.ndarray:
    """All values of an update file, float32 (num_elements,)."""
    with UpdateReader(path) as reader:
        size = reader.header.block_elements
        scratch = np.empty(4 * size + 64, np.uint8)
        out = np.empty(size, np.float32)
        return np.concatenate([reader.decode_block(i, out, scratch).copy() for i in range(reader.num_blocks)])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with text and an empty mailbox."""
    return Site(tmp_path, write_site(tmp_path / "data"))


@pytest.fixture
def language_task() -> dict[str, Any]:
    """A tiny language model's task section, to be changed at will."""
    return json.loads(json.dumps(LANGUAGE_TASK))


@pytest.fixture
def synthetic_task() -> dict[str, Any]:
    """A small synthetic task section, to be changed at will."""
    return json.loads(json.dumps(SYNTHETIC_TASK))
