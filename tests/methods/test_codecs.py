"""One conformance suite over `CODECS`, and golden numbers for each codec."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.codecs import CODECS, STEP_MIN, block_seed, codec, seed_keys

SEED = block_seed("run-1", 7, 3, "reference", "up", 0)
NAMES = [*sorted(CODECS), "fixed8s6", "fixed12s11", "fixed16s12", "fixed24s20", "randk8s11k10"]
LENGTHS = st.sampled_from([1, 2, 4095, 4096, 4097, 3 * 4096, 70_001])


@st.composite
def vectors(draw: st.DrawFn) -> np.ndarray:
    """Float32 vectors of many magnitudes: zeros, denormals, ordinary, huge."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(draw(LENGTHS))
    low = draw(st.sampled_from([-46, -20, -3, 0]))
    high = draw(st.sampled_from([low, 0, 20, 37]))
    values = (values * 10.0 ** rng.uniform(low, max(low, high), len(values))).astype(np.float32)
    values = np.clip(values, -(2.0**126), 2.0**126).astype(np.float32)
    if draw(st.booleans()):
        values[:5000] = 0
    return values


def round_trip(name: str, values: np.ndarray, seed: bytes = SEED) -> np.ndarray:
    """What the receiver sees."""
    out = np.full(len(values), np.nan, np.float32)
    codec(name).decode(codec(name).encode(values, seed), out)
    return out


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(values=vectors())
def test_error_stays_within_the_declared_bound(name: str, values: np.ndarray) -> None:
    """Encoded size is exact, and no element is off by more than declared."""
    row = codec(name)
    encoded = row.encode(values, SEED)
    assert encoded.dtype == np.uint8
    assert len(encoded) == row.encoded_bytes(len(values))
    error = np.abs(round_trip(name, values).astype(np.float64) - values)
    assert np.all(error <= row.error_bound(values))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(values=vectors(), chunks=st.integers(1, 3))
def test_an_encoding_is_its_chunks_encodings(name: str, values: np.ndarray, chunks: int) -> None:
    """Encoding and decoding in chunk-aligned ranges gives the same bytes and values as in one piece."""
    row = codec(name)
    whole = row.encode(values, SEED).tobytes()
    step = 4096 * chunks
    starts = range(0, len(values), step)
    assert b"".join(row.encode(values[at : at + step], SEED, at).tobytes() for at in starts) == whole
    parts = np.empty_like(values)
    for at in starts:
        end = min(at + step, len(values))
        row.decode(whole[row.encoded_bytes(at) : row.encoded_bytes(end)], parts[at:end])
    np.testing.assert_array_equal(parts, round_trip(name, values))


@pytest.mark.parametrize("name", NAMES)
def test_a_given_buffer_is_used(name: str) -> None:
    """With `out` the encoding is a view of its front, and the values are left alone."""
    values = np.linspace(-1, 1, 5000, dtype=np.float32)
    before = values.copy()
    out = np.zeros(30_000, np.uint8)
    encoded = codec(name).encode(values, SEED, out=out)
    assert np.shares_memory(encoded, out)
    assert encoded.tobytes() == codec(name).encode(values, SEED).tobytes()
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("place", [0, 4096, 4999])
def test_values_that_are_not_finite_are_never_encoded(name: str, bad: float, place: int) -> None:
    """NaN, infinity and what could round to it is refused wherever it lies."""
    values = np.ones(5000, np.float32)
    values[place] = bad
    with pytest.raises(BadUpdate, match="not finite"):
        codec(name).encode(values, SEED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_wrong_lengths_are_refused(name: str, change: int) -> None:
    """Data of another length than the values need is refused."""
    size = codec(name).encoded_bytes(5000)
    with pytest.raises(BadUpdate, match="bytes for 5000 values"):
        codec(name).decode(bytes(size + change), np.empty(5000, np.float32))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_hostile_bytes_decode_to_finite_values_or_are_refused(name: str, data: st.DataObject) -> None:
    """Whatever the bytes, nothing but finite values comes out."""
    count = data.draw(st.integers(1, 40))
    size = codec(name).encoded_bytes(count)
    out = np.empty(count, np.float32)
    try:
        codec(name).decode(data.draw(st.binary(min_size=size, max_size=size)), out)
    except BadUpdate:
        return
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("float32", np.array([1, np.nan], "<f4")),
        ("float32", np.array([1, -np.inf], "<f4")),
        ("bfloat16", np.array([0x3F80, 0x7F80], "<u2")),
        ("bfloat16", np.array([0x3F80, 0xFFC0], "<u2")),
        ("float16", np.array([1, np.inf], "<f2")),
    ],
)
def test_plain_codecs_refuse_non_finite_values(name: str, encoded: np.ndarray) -> None:
    """NaN and infinity on the wire are refused."""
    with pytest.raises(BadUpdate, match="finite"):
        codec(name).decode(encoded.tobytes(), np.empty(2, np.float32))


@pytest.mark.parametrize("step", [np.nan, np.inf, -1.0, 1e-40, 1e37])
def test_int8_refuses_hostile_steps(step: float) -> None:
    """A step that is not finite, negative, too small or too large is refused."""
    with pytest.raises(BadUpdate, match="step"):
        codec("int8").decode(np.array([step], "<f4").tobytes() + b"\1\2", np.empty(2, np.float32))


def test_int8_refuses_minus_128() -> None:
    """The byte that no encoder writes is refused."""
    with pytest.raises(BadUpdate, match="-128"):
        codec("int8").decode(np.array([1], "<f4").tobytes() + b"\1\x80", np.empty(2, np.float32))


def test_int8_golden_bytes() -> None:
    """absmax 127 gives step 1 (nearly), whole numbers stay themselves, the format is step then bytes."""
    values = np.array([127, -127, 0], np.float32)
    encoded = codec("int8").encode(values, SEED).tobytes()
    assert np.frombuffer(encoded[:4], "<f4")[0] == np.float32(127) * (np.float32(1) / np.float32(127))
    levels = np.frombuffer(encoded[4:], np.int8)
    assert levels[0] in (126, 127)
    assert levels[1] == -127
    assert levels[2] == 0


def test_int8_by_the_definition_in_python_integers() -> None:
    """The vectorised encoder equals the documented formula, written out in plain integers."""
    values = np.random.default_rng(5).standard_normal(5000).astype(np.float32)
    levels = codec("int8").encode(values, SEED)
    key0, key1 = seed_keys(SEED)
    mask = 0xFFFFFFFF
    for index in (0, 1, 17, 4095, 4096, 4999):
        chunk = values[index // 4096 * 4096 : index // 4096 * 4096 + 4096]
        step = np.max(np.abs(chunk)) * (np.float32(1) / np.float32(127))
        inverse = np.float32(1) / step * np.float32(2**24 - 8)
        h = (index + key0) * 0x9E3779B1 & mask
        h = (h ^ h >> 16) * 0x85EBCA6B & mask
        h = (h ^ h >> 15) * (key1 | 1) & mask
        expected = int(values[index] * inverse) + (h >> 8) >> 24
        assert (
            levels[4 * (index // 4096 + 1) + index : 4 * (index // 4096 + 1) + index + 1].view(np.int8)
            == expected
        )


def test_int8_is_unbiased() -> None:
    """Over many seeds the mean of decoded values is the value; rounding errors have the right size."""
    values = np.full(4096, 0.3, np.float32)
    values[0] = 127
    total = np.zeros(4096)
    for block in range(50):
        total += round_trip("int8", values, block_seed("r", 1, 1, "s", "up", block))
    # 50 x 4095 draws of a variable with deviation 0.46: four sigma of the mean are 0.004.
    assert abs(total[1:].mean() / 50 - 0.3) < 0.004


def test_int8_gives_up_on_tiny_chunks() -> None:
    """A chunk whose step is below the least is zero, and a neighbour is not."""
    values = np.full(8192, STEP_MIN, np.float32)
    values[4096:] = 1
    decoded = round_trip("int8", values)
    assert np.all(decoded[:4096] == 0)
    np.testing.assert_allclose(decoded[4096:], 1, rtol=0.01)


def test_bfloat16_golden_numbers() -> None:
    """Ties go to even; one above the tie goes up."""
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF808001], np.uint32)
    encoded = codec("bfloat16").encode(bits.view(np.float32), SEED).view("<u2")
    assert encoded.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81]


def test_float16_clamps_to_the_largest() -> None:
    """What half precision cannot hold is sent as its largest value and counted in the bound."""
    values = np.array([1.5, 1e6, -1e6], np.float32)
    np.testing.assert_array_equal(round_trip("float16", values), [1.5, 65504, -65504])
    assert codec("float16").error_bound(values)[1] >= 1e6 - 65504


def test_seeds_depend_on_every_part() -> None:
    """Run, seed, round, site, direction and block each change a block's seed; the end is all sites'."""
    parts = [("run", 1, 2, "s", "up", 3), ("run2", 1, 2, "s", "up", 3), ("run", 2, 2, "s", "up", 3)]
    parts += [("run", 1, 3, "s", "up", 3), ("run", 1, 2, "t", "up", 3), ("run", 1, 2, "s", "down", 3)]
    parts += [("run", 1, 2, "s", "up", 4)]
    assert len({block_seed(*part) for part in parts}) == len(parts)
    own = hashlib.sha256(b'["r",1,2,"s","up",3]').digest()
    shared = hashlib.sha256(b'["r",1,2,"","up",3]').digest()
    assert block_seed("r", 1, 2, "s", "up", 3) == own[:16] + shared[16:]
    assert block_seed("r", 1, 2, "", "up", 3) == shared


def test_int8_chance_is_uniform_and_differs_between_blocks() -> None:
    """Rounding up happens as often as it should in every block, and not at the same places."""
    values = np.full(1 << 16, 0.5, np.float32)
    values[::4096] = 127
    one, two = (round_trip("int8", values, block_seed("r", 1, 1, "s", "up", block)) > 0.6 for block in (0, 1))
    for ups in (one, two):
        assert abs(ups.mean() - 0.5) < 0.01
    assert abs((one == two).mean() - 0.5) < 0.01


def test_unknown_codecs_are_named_with_the_nearest() -> None:
    """The error lists the valid names and proposes the one that was meant."""
    with pytest.raises(
        ConfigError, match=r"bfloat16, fixed<bits>s<exp>, float16, float32, int8, randk8.*'int8'"
    ):
        codec("int-8")


def test_int8_starts_at_chunks_only() -> None:
    """A start within a chunk is our own mistake."""
    with pytest.raises(LocalError):
        codec("int8").encode(np.ones(3, np.float32), SEED, start=5)
