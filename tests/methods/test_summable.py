"""Summable codecs beyond the suite that all codecs pass: names, rounding, selection, sums."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.codecs import CODECS, block_seed, codec, codec_names
from fedtrain.methods.selection import places, selection_keys
from fedtrain.methods.slabs import seed_keys
from fedtrain.methods.summable import Fixed, RandK, exponent_for, parameterised, summable

SEED = block_seed("run-1", 7, 3, "reference", "up", 0)
OTHER_SITE = block_seed("run-1", 7, 3, "network", "up", 0)
NAMES = ["fixed8s6", "fixed12s11", "fixed16s12", "fixed24s20", "randk8s11k10", "randk8s4k4096"]


@pytest.mark.parametrize("name", ["fixed8s0", "fixed24s60", "fixed12s-20", "randk8s0k2", "randk8s-3k4096"])
def test_names_carry_the_parameters(name: str) -> None:
    """Names within the ranges are codecs, found by `codec` and `summable` alike."""
    row = summable(name)
    assert codec(name) is row
    assert (row.name, row.summable) == (name, True)
    assert row.step == 2.0**-row.exponent


@pytest.mark.parametrize(
    "name",
    [
        "fixed7s0", "fixed25s0", "fixed12s61", "fixed12s-21", "fixed12", "fixed012s1", "fixed12s01",
        "fixed12s-0", "fixed12s+1", "fixed12s1k2", " fixed12s1", "fixed12s1\n", "fixed1\u0662s1",
        "randk8s1k1", "randk8s1k4097", "randk8s1k0", "randk8s1", "randk16s1k10", "randk8s1k010",
        "fixed12s" + "1" * 5000, "int8", "float32", "",
    ],
)  # fmt: skip
def test_other_names_are_no_summable_codecs(name: str) -> None:
    """Numbers out of range, other spellings and other codecs are refused, and the right ones named."""
    assert parameterised(name) is None
    with pytest.raises(ConfigError, match=r"fixed<bits>s<exp> and randk8s<exp>k<keep>.*fixed12s11"):
        summable(name)
    if name not in CODECS:
        with pytest.raises(ConfigError, match=r"fixed<bits>s<exp>"):
            codec(name)


def test_what_may_stand_for_a_codec_is_listed() -> None:
    """The table's names and the two patterns; only summable codecs say that they are."""
    assert codec_names() == (*CODECS, "fixed<bits>s<exp>", "randk8s<exp>k<keep>")
    assert not any(row.summable for row in CODECS.values())


def test_fixed_golden_numbers() -> None:
    """Step 1/4, 8 bits: multiples of the step are themselves, what is beyond 127/4 is cut off."""
    values = np.array([0, 0.25, -0.25, 31.75, -31.75, 31.8, 1e30, -1e30], np.float32)
    encoded = codec("fixed8s2").encode(values, SEED)
    assert encoded.view("<i2").tolist() == [0, 1, -1, 127, -127, 127, 127, -127]
    assert codec("fixed24s2").encode(values[:3], SEED).tobytes() == b"\0\0\0\0\1\0\0\0\xff\xff\xff\xff"


@pytest.mark.parametrize("name", ["fixed8s6", "fixed16s12", "fixed24s20"])
def test_rounding_by_the_definition_in_python_integers(name: str) -> None:
    """floor(x / step + u) with u of the counter hash, written out in plain integers."""
    row = summable(name)
    values = (np.random.default_rng(5).standard_normal(5000) * row.level_max * row.step / 3).astype(
        np.float32
    )
    levels = row.quantise(values, SEED, 8192, np.empty(5000, np.int32))
    key0, key1 = seed_keys(SEED)
    mask = 0xFFFFFFFF
    for index in (0, 1, 17, 4095, 4096, 4999):
        h = (8192 + index + key0) * 0x9E3779B1 & mask
        h = (h ^ h >> 16) * 0x85EBCA6B & mask
        h = (h ^ h >> 15) * (key1 | 1) & mask
        exact = float(values[index]) * 2**row.exponent
        clamped = min(max(exact, -row.level_max), row.level_max)
        assert levels[index] == int((clamped * 2**24 // 1 + (h >> 8)) // 2**24)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.01, -0.99, 5.5, 2.0**-30])
def test_rounding_is_unbiased(value: float) -> None:
    """Over 200,000 places the mean of what is decoded is the value, within six standard errors."""
    values = np.full(204_800, value, np.float32)
    out = np.empty_like(values)
    total = np.zeros(len(values))
    codec("fixed12s0").decode(codec("fixed12s0").encode(values, SEED), out)
    total += out
    fraction = value % 1
    error = np.sqrt(max(fraction * (1 - fraction), 1e-9) / len(values))
    assert abs(total.mean() - value) <= 6 * error


@pytest.mark.parametrize("name", NAMES)
def test_sites_round_each_for_itself(name: str) -> None:
    """Two sites round the same values differently, at the same coordinates."""
    values = np.random.default_rng(1).uniform(-0.02, 0.02, 100_000).astype(np.float32)
    row = summable(name)
    one, two = (row.encode(values, seed) for seed in (SEED, OTHER_SITE))
    assert one.tobytes() != two.tobytes()
    row.check_selection(two, len(values), SEED, 0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(count=st.sampled_from([1, 9, 10, 11, 4095, 4096, 4097, 12_288, 70_001]), salt=st.integers(0, 2**32))
def test_levels_there_and_back(name: str, count: int, salt: int) -> None:
    """`encode` is `from_levels` of `quantise`; `levels` reads them; `place` with the step decodes them."""
    row = summable(name)
    rng = np.random.default_rng(salt)
    values = (rng.standard_normal(count) * row.step * row.level_max / 2).astype(np.float32)
    out = np.empty(row.level_count(count), np.int32)
    quantised = row.quantise(values, SEED, 4096, out).copy()
    encoded = row.encode(values, SEED, 4096)
    assert row.from_levels(quantised, count, SEED, 4096).tobytes() == encoded.tobytes()
    np.testing.assert_array_equal(row.levels(encoded, count, np.empty_like(out)), quantised)
    decoded, placed = np.empty(count, np.float32), np.empty(count, np.float32)
    row.decode(encoded, decoded)
    row.place(quantised, row.step, SEED, 4096, placed)
    np.testing.assert_array_equal(decoded, placed)
    assert np.count_nonzero(placed) <= len(quantised)


@pytest.mark.parametrize("name", NAMES)
def test_levels_beyond_the_largest_are_refused(name: str) -> None:
    """To write one is our mistake, to read one a bad update."""
    row = summable(name)
    levels = np.zeros(row.level_count(5000), np.int32)
    for level in (row.level_max + 1, -row.level_max - 1):
        levels[-1] = level
        with pytest.raises(LocalError, match="beyond"):
            row.from_levels(levels, 5000, SEED)
    encoded = row.encode(np.zeros(5000, np.float32), SEED)
    encoded[-1] = 0x80
    if name != "fixed16s12" and not isinstance(row, RandK):
        encoded[-2:] = 0xFF, 0x7F
    elif isinstance(row, Fixed):
        encoded[-2:] = 0x00, 0x80
    for read in (
        lambda: row.decode(encoded, np.empty(5000, np.float32)),
        lambda: row.levels(encoded, 5000, levels),
    ):
        with pytest.raises(BadUpdate, match="no encoder writes"):
            read()


def test_starts_within_a_chunk_are_our_mistake() -> None:
    """Chance and selection count from whole chunks."""
    for name in NAMES:
        with pytest.raises(LocalError):
            summable(name).encode(np.ones(3, np.float32), SEED, start=5)


@given(st.integers(1, 4096), st.integers(2, 4096))
@settings(max_examples=60, deadline=None)
def test_selection_takes_one_of_each_group(length: int, keep: int) -> None:
    """One place in each `keep` neighbours, the last group perhaps shorter; each chunk chooses anew."""
    chosen = places(selection_keys(SEED, 0, 3), length, keep)
    assert chosen.shape == (3, -(-length // keep))
    groups = np.arange(chosen.shape[1])
    for chunk, row in enumerate(chosen):
        inside = row - chunk * length
        assert np.all(inside // keep == groups)
        assert inside.max() < length


def test_selection_is_uniform_and_new_each_round() -> None:
    """Over 2,560 chunks each of 10 places in a group is chosen a tenth of the time; rounds differ.

    Fixed seeds: 1,046,912 choices in whole groups, so a share deviates by 0.0003 once in three times.
    """
    inside = places(selection_keys(SEED, 0, 2560), 4096, 10) % 4096 % 10
    shares = np.bincount(inside[:, :-1].ravel(), minlength=10) / inside[:, :-1].size
    assert np.all(np.abs(shares - 0.1) < 0.0015)
    later = block_seed("run-1", 7, 4, "reference", "up", 0)
    assert not np.array_equal(selection_keys(SEED, 0, 2), selection_keys(later, 0, 2))
    keys = selection_keys(SEED, 0, 2560)
    assert len({key.tobytes() for key in keys}) == 2560
    np.testing.assert_array_equal(selection_keys(SEED, 7, 2), keys[7:9])
    np.testing.assert_array_equal(selection_keys(OTHER_SITE, 0, 5), keys[:5])


def test_a_foreign_selection_is_found() -> None:
    """An update for other coordinates than the round's is refused, in whichever chunk it differs."""
    row = summable("randk8s11k10")
    encoded = row.encode(np.zeros(9000, np.float32), SEED)
    row.check_selection(encoded, 9000, SEED, 0)
    for at in (0, 418, 836):
        altered = encoded.copy()
        altered[at] ^= 1
        with pytest.raises(BadUpdate, match="other coordinates"):
            row.check_selection(altered, 9000, SEED, 0)
    with pytest.raises(BadUpdate, match="other coordinates"):
        row.check_selection(encoded, 9000, SEED, 4096)


def test_randk_golden_sizes() -> None:
    """Of 4096, keep 10: 8 bytes of key and 410 levels; 39 times less than float32."""
    row = summable("randk8s11k10")
    assert row.encoded_bytes(4096) == 8 + 410
    assert row.encoded_bytes(4096 + 11) == 8 + 410 + 8 + 2
    assert 4 * 10**6 / row.encoded_bytes(10**6) > 39


@pytest.mark.parametrize(
    ("bits", "largest", "exponent"),
    [(12, 1.0, 10), (16, 1.0, 14), (8, 127.0, 0), (8, 127.5, -1), (24, 2.0, 21)],
)
def test_the_step_reaches_the_range(bits: int, largest: float, exponent: int) -> None:
    """The finest power of two with which the largest level reaches the range."""
    assert exponent_for(bits, largest) == exponent


@pytest.mark.parametrize("largest", [0.0, -1.0, float("nan"), float("inf"), 2.0**40])
def test_impossible_ranges_are_refused(largest: float) -> None:
    """A range that no step reaches is the user's to change."""
    with pytest.raises(ConfigError, match="range"):
        exponent_for(12, largest)
