"""Rings: packed bits by the definition, and sums that never wrap."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.ring import (
    limb_count,
    pack,
    packed_bytes,
    ring_bits,
    signed,
    unpack,
    weight_limbs,
    weight_sum,
)


def by_definition(words: list[int], bits: int) -> bytes:
    """The stream of bits as one big integer."""
    whole = sum((word & (1 << bits) - 1) << place * bits for place, word in enumerate(words))
    return whole.to_bytes(packed_bytes(len(words), bits), "little")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200))
def test_packing_is_a_stream_of_bits(bits: int, words: list[int]) -> None:
    """Any words at any width are what one big integer would be, and come back without their high bits."""
    array = np.array(words, np.uint32)
    packed = pack(array, bits)
    assert packed.tobytes() == by_definition(words, bits)
    mask = (1 << bits) - 1
    assert unpack(packed, bits, np.empty_like(array)).tolist() == [word & mask for word in words]
    assert array.tolist() == words


@pytest.mark.parametrize("bits", range(1, 33))
def test_ranges_of_32_are_whole_bytes(bits: int) -> None:
    """Packing a long vector in ranges that start at multiples of 32 gives the same bytes."""
    words = np.random.default_rng(bits).integers(0, 2**32, 40_005, np.uint32)
    whole = pack(words, bits).tobytes()
    parts = [pack(words[begin : begin + 8_224], bits).tobytes() for begin in range(0, len(words), 8_224)]
    assert b"".join(parts) == whole
    out = np.empty(40_005, np.uint32)
    np.testing.assert_array_equal(
        unpack(np.frombuffer(whole, np.uint8), bits, out), words & np.uint32(2**bits - 1)
    )


def test_a_given_buffer_is_packed_into() -> None:
    """The result is a view of the front of `out`; the bytes behind it stay."""
    out = np.full(100, 7, np.uint8)
    packed = pack(np.arange(20, dtype=np.uint32), 12, out)
    assert np.shares_memory(packed, out)
    assert (len(packed), out[30:].tolist()) == (30, [7] * 70)


def test_wrong_sizes_and_widths_are_our_mistake() -> None:
    """Bytes that do not fit the words, and widths that no word has, are a `LocalError`."""
    with pytest.raises(LocalError):
        unpack(np.zeros(3, np.uint8), 12, np.empty(3, np.uint32))
    for bits in (0, 33):
        with pytest.raises(LocalError):
            pack(np.zeros(3, np.uint32), bits)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sums_within_the_ring_are_exact(data: st.DataObject) -> None:
    """In a ring of `ring_bits` any levels of so many sites add up to their true sum, sign and all."""
    bits, sites = data.draw(st.integers(8, 24)), data.draw(st.integers(1, 70))
    ring = ring_bits(bits, sites)
    most = 2 ** (bits - 1) - 1
    levels = data.draw(st.lists(st.integers(-most, most), min_size=sites, max_size=sites))
    levels = data.draw(st.sampled_from([levels, [most] * sites, [-most] * sites]))
    packed = [pack(np.array([level], np.int32).view(np.uint32), ring) for level in levels]
    total = np.zeros(1, np.uint32)
    for octets in packed:
        total += unpack(octets, ring, np.empty(1, np.uint32))
    assert signed(total, ring).tolist() == [sum(levels)]


@pytest.mark.parametrize(
    ("bits", "sites", "noise", "ring"),
    [(12, 10, 0, 16), (12, 1, 0, 12), (12, 2, 0, 13), (8, 32, 0, 13), (24, 200, 0, 32), (16, 16, 4, 24)],
)
def test_ring_golden_numbers(bits: int, sites: int, noise: int, ring: int) -> None:
    """Bits of a level, of the number of sites rounded up, and of headroom: 12 bits of 10 sites need 16."""
    assert ring_bits(bits, sites, noise) == ring


def test_rings_above_32_bits_are_refused() -> None:
    """The sentence says how many bits are needed and what to take instead."""
    with pytest.raises(ConfigError, match=r"need 33 bits.*fewer bits"):
        ring_bits(24, 257)


@given(st.data())
def test_weights_add_up_limb_by_limb(data: st.DataObject) -> None:
    """Weights in limbs, added modulo the ring, give the sum of the weights."""
    bits, most = data.draw(st.integers(8, 24)), data.draw(st.integers(1, 2**53 - 1))
    weights = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=40))
    weights = data.draw(st.sampled_from([weights, [most] * len(weights)]))
    ring = ring_bits(bits, len(weights))
    total = np.zeros(limb_count(most, bits), np.uint32)
    for weight in weights:
        total += weight_limbs(weight, most, bits)
    total |= np.uint32(0xFFFFFFFF << ring & 0xFFFFFFFF)
    assert weight_sum(total, most, bits, ring, len(weights)) == sum(weights)


def test_impossible_weights_are_refused() -> None:
    """A sum above sites x the largest weight, or a limb above what limbs can add up to, is garbage."""
    assert limb_count(0, 12) == 0
    with pytest.raises(BadUpdate, match="garbage"):
        weight_sum(weight_limbs(31, 31, 12), 10, 12, 16, 3)
    with pytest.raises(BadUpdate, match="garbage"):
        weight_sum(np.array([0xFFFF, 0], np.uint32), 2**20, 12, 16, 3)
    for weight in (-1, 11):
        with pytest.raises(LocalError):
            weight_limbs(weight, 10, 12)
