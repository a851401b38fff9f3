"""The codecs' encoders on the accelerator: the same bytes as `methods.codecs`, without copying floats.

A quarter of the bytes crosses the bus when the accelerator quantises. On the CPU numpy's encoder
is faster, so tensors there go to it. Assumed of the device: IEEE float32 single operations that
neither fuse nor flush denormals, and wrapping int32, which PyTorch's element-wise kernels keep.
torch has no unsigned shifts: a logical right shift is an arithmetic one with the copies of the
sign masked away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedtrain.errors import BadUpdate
from fedtrain.methods.codecs import FIXED_ONE, FLOAT16_MAX, STEP_MIN, codec
from fedtrain.methods.slabs import HASH_MIX, HASH_STEP, VALUE_MAX, seed_keys
from fedtrain.methods.vectors import CHUNK_ELEMENTS


def encode(name: str, values: torch.Tensor, seed: bytes) -> bytes:
    """The encoding of one whole block by the codec `name`.

    `values` is float32, shape (n,), contiguous, on any device; `seed` the block's 32 bytes. Raises
    `BadUpdate` if a value is not finite or beyond 2^126, `ConfigError` for an unknown codec.
    """
    if values.device.type == "cpu":
        return codec(name).encode(values.detach().numpy(), seed).tobytes()
    return encode_on_device(name, values.detach(), seed)


def encode_on_device(name: str, values: torch.Tensor, seed: bytes) -> bytes:
    """`encode` by torch's own operations, whatever the device."""
    if name not in _ENCODERS:
        return codec(name).encode(values.cpu().numpy(), seed).tobytes()
    if not bool((values.abs() <= VALUE_MAX).all()):
        raise BadUpdate("values to encode are not finite or beyond 2^126: the training diverged")
    return _ENCODERS[name](values, seed).cpu().numpy().tobytes()


def _float32(values: torch.Tensor, seed: bytes) -> torch.Tensor:
    return values


def _bfloat16(values: torch.Tensor, seed: bytes) -> torch.Tensor:
    return values.to(torch.bfloat16).view(torch.int16)


def _float16(values: torch.Tensor, seed: bytes) -> torch.Tensor:
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)


def _int8(values: torch.Tensor, seed: bytes) -> torch.Tensor:
    """Full chunks as one matrix, a last short chunk as a second one."""
    keys = seed_keys(seed)
    full = len(values) // CHUNK_ELEMENTS * CHUNK_ELEMENTS
    parts = [_int8_rows(values[:full].view(-1, CHUNK_ELEMENTS), 0, keys)] if full else []
    if full < len(values):
        parts.append(_int8_rows(values[full:].view(1, -1), full, keys))
    return torch.cat(parts) if parts else values.new_empty(0, dtype=torch.uint8)


def _int8_rows(rows: torch.Tensor, index: int, keys: tuple[int, int]) -> torch.Tensor:
    """Encoded bytes of `rows` (chunks, elements) whose first element has this index in the block."""
    per_127 = torch.ones(1, device=rows.device) / torch.full((1,), 127.0, device=rows.device)
    steps = rows.abs().amax(dim=1, keepdim=True) * per_127
    steps = torch.where(steps < STEP_MIN, torch.zeros_like(steps), steps)
    ones = torch.ones_like(steps)
    inverses = torch.where(steps > 0, ones / torch.where(steps > 0, steps, ones), torch.zeros_like(steps))
    inverses *= FIXED_ONE
    fixed = (rows * inverses).to(torch.int32)
    fixed += _chances(index, rows.numel(), keys, rows.device).view(rows.shape)
    levels = (fixed >> 24).to(torch.int8)
    return torch.cat([steps.view(torch.uint8), levels.view(torch.uint8)], dim=1).flatten()


def _chances(index: int, count: int, keys: tuple[int, int], device: torch.device) -> torch.Tensor:
    """`hash24` of `methods.codecs` for the elements from `index` on, int32, shape (count,)."""
    words = torch.arange(count, dtype=torch.int32, device=device)
    words += _signed(index + keys[0])
    words *= _signed(HASH_STEP)
    words ^= _shift_right(words, 16)
    words *= _signed(HASH_MIX)
    words ^= _shift_right(words, 15)
    words *= _signed(keys[1] | 1)
    return _shift_right(words, 8)


def _shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int32."""
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """The int32 with the same 32 bits."""
    return ((word + 0x80000000) & 0xFFFFFFFF) - 0x80000000


_ENCODERS: dict[str, Callable[[torch.Tensor, bytes], torch.Tensor]] = {
    "float32": _float32,
    "bfloat16": _bfloat16,
    "float16": _float16,
    "int8": _int8,
}
