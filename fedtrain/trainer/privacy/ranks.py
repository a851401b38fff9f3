"""Several processes that train as one: one draw, one sum, one noise.

With `torch.distributed` set up, rank 0 draws the key of a step and everybody derives the same draw from
it; each rank takes every n-th unit of it; the clipped sums are added up over the ranks; the noise, which
all ranks expand from the same key, is added to that one sum. So it enters once, whatever the number of
ranks, and the result has the same bits everywhere. Without it, there is one rank. All ranks are one
site's own: the key crosses its own network.

A rank that finds a fault says so before the sum, so that the others end as well, instead of waiting for it.

The process group has to take tensors in main memory (gloo, alone or beside another for the device's). A
wrapper that averages gradients by itself (DistributedDataParallel) must not be around the model: it would
send gradients that are not clipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed
from torch import Tensor

from fedtrain.errors import LocalError
from fedtrain.trainer.privacy.noise import fresh_key


def world() -> tuple[int, int]:
    """(this rank, number of ranks)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def shared_key() -> bytes:
    """A fresh key, the same at all ranks."""
    key = torch.frombuffer(bytearray(fresh_key()), dtype=torch.uint8)
    if world()[1] > 1:
        with _reached():
            distributed.broadcast(key, src=0)
    return key.numpy().tobytes()


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world()[1] > 1:
        with _reached():
            distributed.all_reduce(values)
    return values


@contextmanager
def together() -> Iterator[None]:
    """What every rank does for itself before a sum: if one of them fails, all do, each with its reason."""
    fault: Exception | None = None
    try:
        yield
    except Exception as found:
        fault = found
    failed = float(summed(torch.tensor([float(fault is not None)])))
    if fault is not None:
        raise fault
    if failed:
        raise LocalError(
            f"{failed:g} of the {world()[1]} processes that train together found a fault in this step: see"
            " what they say; the training ends in all of them"
        )


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LocalError(
            "the processes that train together do not reach each other any more, or their process group takes"
            f" no tensors in main memory ({str(error).splitlines()[0][:200]}): see whether one of them ended,"
            " and start them together again"
        ) from error
