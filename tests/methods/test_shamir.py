"""Shares: any threshold of them give the secret back, and nonsense is refused."""

import os
import random

import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import LocalError, RemoteError
from fedtrain.methods.shamir import PRIME, SHARE_BYTES, combine, split

SECRET = bytes(range(32))


def is_probably_prime(number: int, bases: int = 64) -> bool:
    """The test of Miller (1976) and Rabin (1980), with fixed random bases."""
    if number % 2 == 0:
        return number == 2
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    chance = random.Random(1979)
    for _ in range(bases):
        value = pow(chance.randrange(2, number - 1), odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_first_prime_above_2_256() -> None:
    """64 bases: a composite passes with probability below 4^-64. No number between is prime."""
    assert PRIME > 1 << 256
    assert is_probably_prime(PRIME)
    assert not any(is_probably_prime(number) for number in range((1 << 256) + 1, PRIME))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject) -> None:
    """Whichever shares, in whatever order, at least the threshold of them: the secret comes back."""
    secret = data.draw(st.binary(min_size=32, max_size=32))
    holders = data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=20, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = split(secret, threshold, holders, os.urandom)
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    count = data.draw(st.integers(threshold, len(holders)))
    chosen = data.draw(st.permutations(holders))[:count]
    assert combine([(holder, shares[holder]) for holder in chosen], threshold) == secret


def test_golden_shares() -> None:
    """Secret 5 with coefficient 7: the shares are 5 + 7x, which a reader can check."""
    secret = (5).to_bytes(32, "big")
    shares = split(secret, 2, [1, 2, 300], lambda count: (7).to_bytes(count, "big"))
    assert {holder: int.from_bytes(share, "big") for holder, share in shares.items()} == {
        1: 12,
        2: 19,
        300: 2105,
    }


def test_extreme_secrets_come_back() -> None:
    """All zeros and all ones, with a few hundred holders."""
    for secret in (bytes(32), b"\xff" * 32):
        shares = list(split(secret, 101, range(1, 301), os.urandom).items())
        assert combine(shares[150:251], 101) == secret


def test_fewer_shares_than_the_threshold_fit_any_secret() -> None:
    """One share less: for any other secret there is a last share that gives it, so nothing is known."""
    shares = list(split(SECRET, 3, [1, 2, 3], os.urandom).items())
    found = set()
    for guess in range(20):
        with_guess = [*shares[:2], (3, guess.to_bytes(SHARE_BYTES, "big"))]
        try:
            found.add(combine(with_guess, 3))
        except RemoteError:  # the polynomial's value lies between 2^256 and the prime
            continue
    assert len(found) >= 19
    assert SECRET not in found


@pytest.mark.parametrize(
    ("secret", "threshold", "holders"),
    [
        (b"short", 2, [1, 2]),
        (SECRET, 0, [1, 2]),
        (SECRET, 3, [1, 2]),
        (SECRET, 2, [1, 1]),
        (SECRET, 2, [0, 1]),
        (SECRET, 2, [-1, 1]),
        (SECRET, 2, [PRIME, 1]),
        (SECRET, 2, range(1, 1100)),
    ],
)
def test_impossible_splits_are_our_mistake(secret: bytes, threshold: int, holders: list[int]) -> None:
    """Another size, threshold or holder than there can be is a `LocalError`."""
    with pytest.raises(LocalError):
        split(secret, threshold, holders, os.urandom)


def test_false_shares_are_refused() -> None:
    """Too few, one holder twice, holder 0, malformed ones, and one that does not fit the others."""
    shares = list(split(SECRET, 3, [1, 2, 3, 4], os.urandom).items())
    false = (4, bytes(SHARE_BYTES))
    for chosen, reason in (
        (shares[:2], "needed"),
        ([*shares[:2], shares[0]], "twice"),
        ([*shares[:2], (0, shares[2][1])], "above 0"),
        ([*shares[:2], (3 + PRIME, shares[2][1])], "above 0"),
        ([*shares[:2], (3, shares[2][1][1:])], "bytes"),
        ([*shares[:2], (3, b"\xff" * SHARE_BYTES)], "field"),
        ([*shares[:3], false], "does not fit"),
        ([false, *shares[:3]], "does not fit"),
    ):
        with pytest.raises(RemoteError, match=reason):
            combine(chosen, 3)
    with pytest.raises(RemoteError, match="no secret"):
        combine([(1, (PRIME - 1).to_bytes(SHARE_BYTES, "big"))], 1)
