"""Several processes that train as one: one draw, one sum, one noise.

With `torch.distributed` set up, rank 0 draws the key of a step and everybody derives the same draw from
it; each rank takes every n-th unit of it; the clipped sums are added up over the ranks; the noise, which
all ranks expand from the same key, is added to that one sum. So it enters once, whatever the number of
ranks, and the result has the same bits everywhere. Without it, there is one rank. All ranks are one
site's own: the key crosses its own network.

A wrapper that averages gradients by itself (DistributedDataParallel) must not be around the model: it
would send gradients that are not clipped.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor

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
        distributed.broadcast(key, src=0)
    return key.numpy().tobytes()


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world()[1] > 1:
        distributed.all_reduce(values)
    return values
