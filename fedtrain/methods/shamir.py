"""A secret in shares, of which any `threshold` give it back and fewer say nothing about it.

The secret is a number below 2^256, the value at 0 of a polynomial of degree threshold - 1 with random
coefficients modulo the prime 2^256 + 297; the share of holder x is its value at x. Source: Shamir, How to
share a secret, 1979, doi 10.1145/359168.359176. Plain Python integers: their time depends on the values,
so this is for machines whose timing no stranger measures to the microsecond.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from fedtrain.errors import LocalError, RemoteError

PRIME = (1 << 256) + 297
"""The first prime above 2^256; the tests put it and all between to Miller and Rabin's test, 64 bases."""

SECRET_BYTES = 32
SHARE_BYTES = 33
HOLDERS_MAX = 1024

_COEFFICIENT_BYTES = 64  # 512 random bits modulo a prime of 257: uniform to 2^-255


def split(
    secret: bytes, threshold: int, holders: Sequence[int], random: Callable[[int], bytes]
) -> dict[int, bytes]:
    """The share, 33 bytes, of each holder: numbers above 0, all different.

    `random(n)` gives n bytes that nobody else can know. `LocalError` on anything impossible.
    """
    if len(secret) != SECRET_BYTES:
        raise LocalError(f"a secret of {len(secret)} bytes cannot be shared: it has {SECRET_BYTES}")
    if not 1 <= threshold <= len(holders) <= HOLDERS_MAX:
        raise LocalError(f"{threshold} of {len(holders)} shares: from 1 to all, of at most {HOLDERS_MAX}")
    if len(set(holders)) != len(holders) or not all(0 < holder < PRIME for holder in holders):
        raise LocalError("holders of shares are numbers above 0, each named once")
    coefficients = [int.from_bytes(random(_COEFFICIENT_BYTES), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))  # the highest power first, the secret at x^0
    return {
        holder: functools.reduce(lambda value, c: (value * holder + c) % PRIME, coefficients).to_bytes(
            SHARE_BYTES, "big"
        )
        for holder in holders
    }


def combine(shares: Sequence[tuple[int, bytes]], threshold: int) -> bytes:
    """The secret, 32 bytes, from at least `threshold` shares (holder, share) of different holders.

    The first `threshold` give it, and any further ones must lie on the same polynomial. `RemoteError` if
    there are too few, a holder comes twice, a share is malformed or does not fit the others. With just
    `threshold` shares a false one gives a false secret: hold it against a digest or public key.
    """
    if threshold < 1 or len(shares) < threshold:
        raise RemoteError(f"{len(shares)} shares, and {threshold} are needed: the secret stays unknown")
    holders = tuple(holder for holder, _ in shares)
    if len(set(holders)) != len(holders) or not all(0 < holder < PRIME for holder in holders):
        raise RemoteError("shares come from holders that are no numbers above 0, or twice from one")
    values = [_value(holder, share) for holder, share in shares]
    basis, rest = holders[:threshold], list(zip(holders, values, strict=True))[threshold:]
    for holder, value in rest:
        if _interpolated(values, _weights(basis, holder)) != value:
            raise RemoteError(f"the share of holder {holder} does not fit the others: one of them is false")
    secret = _interpolated(values, _weights(basis, 0))
    if secret >> 8 * SECRET_BYTES:
        raise RemoteError("the shares give no secret: one of them is false")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(holder: int, share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise RemoteError(f"the share of holder {holder} is none: {len(share)} bytes, or out of the field")
    return value


def _interpolated(values: Sequence[int], weights: Sequence[int]) -> int:
    return sum(value * weight for value, weight in zip(values, weights, strict=False)) % PRIME


@functools.lru_cache(maxsize=256)
def _weights(holders: tuple[int, ...], place: int) -> tuple[int, ...]:
    """What the values at `holders` count for in the value at `place`: Lagrange's coefficients.

    Kept, because many secrets of one round are put together from the same holders' shares.
    """
    return tuple(
        math.prod(place - other for other in holders if other != holder)
        * pow(math.prod(holder - other for other in holders if other != holder), -1, PRIME)
        % PRIME
        for holder in holders
    )
