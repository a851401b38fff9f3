"""Masked files: exact sizes, ranges that stand by themselves, hostile headers refused before allocation."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.maskedfile import (
    MAGIC,
    MaskedHeader,
    MaskedReader,
    MaskedWriter,
    level_values,
    masked_size,
    num_values,
)

HEADER = MaskedHeader("run-1", 4, "reference", "ab" * 32, "fixed12s11", 9001, 4096, 15, 10**6)
WORDS = np.random.default_rng(0).integers(0, 2**15, 9003, np.uint32)


def write(path: Path, header: MaskedHeader = HEADER, words: np.ndarray = WORDS) -> tuple[str, int]:
    """Write in ranges of 4096 values; what `close` returns."""
    writer = MaskedWriter(path, header)
    for start in range(0, len(words), 4096):
        writer.absorb(writer.place(start, words[start : start + 4096], np.empty(4 * 4096, np.uint8)))
    return writer.close()


def test_values_come_back(tmp_path: Path) -> None:
    """Digest and size are the file's, levels and two limbs are counted, and any range is read alone."""
    digest, size = write(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size)
    assert size == masked_size(HEADER)
    assert (level_values(HEADER), num_values(HEADER)) == (9001, 9003)
    with MaskedReader(tmp_path / "m") as reader:
        assert (reader.header, reader.num_values) == (HEADER, 9003)
        for start, stop in ((0, 9003), (32, 64), (8992, 9003), (4096, 8192)):
            out = reader.read(start, np.empty(stop - start, np.uint32), np.empty(40_000, np.uint8))
            np.testing.assert_array_equal(out, WORDS[start:stop])
        for start, stop in ((1, 33), (0, 33), (0, 9004), (9024, 9056)):
            with pytest.raises(LocalError):
                reader.read(start, np.empty(stop - start, np.uint32), np.empty(40_000, np.uint8))


def test_golden_bytes(tmp_path: Path) -> None:
    """Three 12-bit words are four and a half bytes, low bits first, filled up with zeros."""
    header = dataclasses.replace(HEADER, num_elements=3, ring_bits=12, weight_max=0)
    write(tmp_path / "m", header, np.array([0x123, 0x456, 0x789], np.uint32))
    assert (tmp_path / "m").read_bytes()[-5:].hex() == "2361458907"
    assert (tmp_path / "m").read_bytes().startswith(b"FTMSK1\n\0")


def test_files_of_another_size_are_refused(tmp_path: Path) -> None:
    """Trailing bytes, missing bytes, and files that are no masked updates are refused; so are links."""
    write(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    with pytest.raises(BadUpdate):
        MaskedReader(tmp_path / "link")
    for hostile in (data + b"\0", data[:-1], data[:11], b"", b"PK\3\4" + data[4:], MAGIC + b"\xff" * 4):
        (tmp_path / "m").write_bytes(hostile)
        with pytest.raises(BadUpdate):
            MaskedReader(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        {"num_elements": 2**62}, {"num_elements": 0}, {"num_elements": -1}, {"num_elements": 10**400},
        {"block_elements": 0}, {"block_elements": 4097}, {"block_elements": 2**60},
        {"codec": "int8"}, {"codec": "fixed12s99"}, {"codec": "x" * 10_000}, {"codec": 8},
        {"ring_bits": 11}, {"ring_bits": 33}, {"ring_bits": -1}, {"ring_bits": 15.0},
        {"weight_max": -1}, {"weight_max": 2**53}, {"site": ""}, {"site": "../x"}, {"run": "a/b"},
        {"session": "../../etc"}, {"session": ""}, {"round": -1}, {"round": 2**63}, {"more": 1},
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Impossible numbers, codecs that cannot be added up, foreign words and unknown fields are refused."""
    text = json.dumps(
        {**dataclasses.asdict(HEADER), **change}, sort_keys=True, separators=(",", ":")
    ).encode()
    (tmp_path / "m").write_bytes(MAGIC + len(text).to_bytes(4, "little") + text + bytes(16_881))
    with pytest.raises(BadUpdate):
        MaskedReader(tmp_path / "m")


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_a_bad_update(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever stands in the file, nothing but `BadUpdate` is raised."""
    path = tmp_path_factory.getbasetemp() / "m"
    for hostile in (data, MAGIC + data, MAGIC + len(data).to_bytes(4, "little") + data):
        path.write_bytes(hostile)
        with pytest.raises(BadUpdate):
            MaskedReader(path)


def test_writer_holds_to_its_header(tmp_path: Path) -> None:
    """Fewer or more values than promised, odd places and impossible headers are refused."""
    writer = MaskedWriter(tmp_path / "m", HEADER)
    with pytest.raises(LocalError, match="fewer"):
        writer.close()
    writer = MaskedWriter(tmp_path / "m", HEADER)
    with pytest.raises(LocalError, match="more"):
        writer.place(32, WORDS, np.empty(40_000, np.uint8))
    with pytest.raises(LocalError, match="multiples of 32"):
        writer.place(1, WORDS[:32], np.empty(4096, np.uint8))
    writer.abandon()
    with pytest.raises(BadUpdate):
        MaskedWriter(tmp_path / "m", dataclasses.replace(HEADER, ring_bits=8))
    with pytest.raises(ConfigError, match="added up under masks"):
        MaskedWriter(tmp_path / "m", dataclasses.replace(HEADER, codec="int8"))
