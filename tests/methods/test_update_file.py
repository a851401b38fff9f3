"""Update files: exact sizes, hostile headers refused before allocation, inspection at Commit."""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError, LocalError, RemoteError, StorageError
from fedtrain.methods.codecs import CODECS, block_seed, codec
from fedtrain.methods.updatefile import (
    MAGIC,
    UpdateFacts,
    UpdateHeader,
    UpdateReader,
    UpdateWriter,
    expected_size,
    inspect,
)

COUNT = 3 * 8192 - 100
HEADER = UpdateHeader(
    run="run-1",
    round=4,
    site="reference",
    direction="up",
    base_version=3,
    layout_digest="ab" * 32,
    codec="float32",
    block_elements=8192,
    num_elements=COUNT,
    clip_norm=1.5,
)
FACTS = UpdateFacts("run-1", 4, "reference", 3, "ab" * 32, "float32", COUNT)
VALUES = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)


def write(path: Path, header: UpdateHeader = HEADER, values: np.ndarray = VALUES) -> tuple[str, int]:
    """Encode `values` block by block; what `close` returns."""
    writer = UpdateWriter(path, header)
    for block, start in enumerate(range(0, len(values), header.block_elements)):
        seed = block_seed(header.run, 1, header.round, header.site, header.direction, block)
        writer.write_block(codec(header.codec).encode(values[start : start + header.block_elements], seed))
    return writer.close()


@pytest.mark.parametrize("name", sorted(CODECS))
def test_blocks_come_back(tmp_path: Path, name: str) -> None:
    """Digest and size are the file's; every block decodes within the codec's bound, in any order."""
    header = dataclasses.replace(HEADER, codec=name)
    digest, size = write(tmp_path / "u", header)
    data = (tmp_path / "u").read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size)
    assert size == expected_size(header)
    out, scratch = np.empty(8192, np.float32), np.empty(5 * 8192, np.uint8)
    with UpdateReader(tmp_path / "u") as reader:
        assert reader.header == header
        assert reader.num_blocks == 3
        for block in (2, 0, 1):
            part = VALUES[block * 8192 : (block + 1) * 8192]
            decoded = reader.decode_block(block, out, scratch)
            assert len(decoded) == len(part)
            assert np.all(np.abs(decoded - part) <= codec(name).error_bound(part) * 1.0001)
        with pytest.raises(LocalError):
            reader.decode_block(3, out, scratch)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_ranges_of_chunks_equal_blocks(tmp_path: Path, name: str) -> None:
    """A chunk-aligned range, even across blocks, decodes to what the blocks hold there."""
    write(tmp_path / "u", dataclasses.replace(HEADER, codec=name))
    scratch = np.empty(5 * COUNT, np.uint8)
    whole = np.empty(COUNT, np.float32)
    with UpdateReader(tmp_path / "u") as reader:
        for block in range(3):
            reader.decode_block(block, whole[block * 8192 :], scratch)
        for start, stop in ((4096, 20480), (0, COUNT), (20480, COUNT)):
            part = reader.decode_range(start, np.empty(stop - start, np.float32), scratch)
            np.testing.assert_array_equal(part, whole[start:stop])
        for start, stop in ((1, 4096), (0, 5), (4096, COUNT + 1)):
            with pytest.raises(LocalError):
                reader.decode_range(start, np.empty(stop - start, np.float32), scratch)


def test_inspect_measures_the_norm(tmp_path: Path) -> None:
    """The norm is that of the decoded values, to float32 accuracy, and the same every time."""
    write(tmp_path / "u")
    norm = inspect(tmp_path / "u", FACTS)
    assert norm == pytest.approx(float(np.linalg.norm(VALUES.astype(np.float64))), rel=1e-6)
    assert norm == inspect(tmp_path / "u", FACTS, norm_max=norm)
    with pytest.raises(BadUpdate, match="above the bound"):
        inspect(tmp_path / "u", FACTS, norm_max=norm * 0.999)


def test_inspect_golden_norm(tmp_path: Path) -> None:
    """Two values of 3 and 4, far apart, have norm 5."""
    values = np.zeros(COUNT, np.float32)
    values[0], values[-1] = 3, -4
    write(tmp_path / "u", values=values)
    assert inspect(tmp_path / "u", FACTS) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"run": "run-2"},
        {"round": 5},
        {"site": "network"},
        {"base_version": 2},
        {"layout_digest": "cd" * 32},
        {"codec": "int8"},
        {"num_elements": COUNT + 1},
    ],
)
def test_inspect_names_what_differs(tmp_path: Path, change: dict[str, object]) -> None:
    """Each fact that is not the round's is refused by name."""
    write(tmp_path / "u")
    with pytest.raises(BadUpdate, match=next(iter(change))):
        inspect(tmp_path / "u", dataclasses.replace(FACTS, **change))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
@pytest.mark.parametrize("place", [0, 8191, COUNT - 1])
def test_inspect_refuses_what_is_not_finite(tmp_path: Path, bad: float, place: int) -> None:
    """NaN, infinity and absurd sizes are found wherever they lie."""
    write(tmp_path / "u")
    data = bytearray((tmp_path / "u").read_bytes())
    at = len(data) - 4 * (COUNT - place)
    data[at : at + 4] = np.array([bad], "<f4").tobytes()
    (tmp_path / "u").write_bytes(data)
    with pytest.raises(BadUpdate, match="finite"):
        inspect(tmp_path / "u", FACTS)


def test_files_of_another_size_are_refused(tmp_path: Path) -> None:
    """Trailing bytes, missing bytes, and files that are no updates are refused."""
    write(tmp_path / "u")
    data = (tmp_path / "u").read_bytes()
    for hostile in (data + b"\0", data[:-1], data[:11], b"", b"PK\3\4" + data[4:], MAGIC + b"\xff" * 4):
        (tmp_path / "u").write_bytes(hostile)
        with pytest.raises(BadUpdate):
            UpdateReader(tmp_path / "u")


@pytest.mark.parametrize(
    "change",
    [
        {"num_elements": 2**62},
        {"num_elements": -1},
        {"num_elements": 0},
        {"num_elements": 10**400},
        {"block_elements": 0},
        {"block_elements": 4097},
        {"block_elements": -4096},
        {"block_elements": 2**60},
        {"codec": "zip"},
        {"codec": "x" * 10_000},
        {"codec": 8},
        {"direction": "down"},
        {"direction": "sideways"},
        {"site": ""},
        {"site": "../x"},
        {"run": "a/b"},
        {"run": "\x1b[31m"},
        {"layout_digest": "../../etc"},
        {"round": -1},
        {"round": 1.0},
        {"base_version": 2**63},
        {"clip_norm": -1.0},
        {"clip_norm": float("inf")},
        {"clip_norm": float("nan")},
        {"clip_norm": 1},
        {"more": 1},
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Impossible numbers, foreign words, paths and unknown fields are refused."""
    (tmp_path / "u").write_bytes(with_header(json.dumps({**dataclasses.asdict(HEADER), **change})))
    with pytest.raises(BadUpdate):
        UpdateReader(tmp_path / "u")


def with_header(text: str) -> bytes:
    """A file of this header, in canonical form where it is JSON, with the good file's body."""
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    return MAGIC + len(text.encode()).to_bytes(4, "little") + text.encode() + VALUES.tobytes()


def test_headers_have_one_spelling(tmp_path: Path) -> None:
    """Spaces or another order of keys are refused, the canonical text is accepted."""
    text = json.dumps(dataclasses.asdict(HEADER))
    (tmp_path / "u").write_bytes(with_header(text))
    UpdateReader(tmp_path / "u").close()
    (tmp_path / "u").write_bytes(MAGIC + len(text).to_bytes(4, "little") + text.encode() + VALUES.tobytes())
    with pytest.raises(BadUpdate, match="canonical"):
        UpdateReader(tmp_path / "u")


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_header_text_is_a_remote_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """No header text raises anything but a `RemoteError`."""
    path = tmp_path_factory.getbasetemp() / "u"
    path.write_bytes(with_header(text))
    with pytest.raises(RemoteError):
        UpdateReader(path)


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    """Only a regular file is opened."""
    write(tmp_path / "u")
    (tmp_path / "link").symlink_to(tmp_path / "u")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(BadUpdate):
            UpdateReader(tmp_path / name)
    with pytest.raises(StorageError):
        UpdateReader(tmp_path / "absent")


def test_writer_holds_to_its_header(tmp_path: Path) -> None:
    """Fewer or more bytes than promised, and impossible headers, are our own mistakes."""
    writer = UpdateWriter(tmp_path / "u", HEADER)
    with pytest.raises(LocalError, match="fewer"):
        writer.close()
    with pytest.raises(LocalError, match="more"):
        UpdateWriter(tmp_path / "u", HEADER).write_block(bytes(4 * COUNT + 1))
    with pytest.raises(BadUpdate):
        UpdateWriter(tmp_path / "u", dataclasses.replace(HEADER, block_elements=5))
    with pytest.raises(ConfigError):
        UpdateWriter(tmp_path / "u", dataclasses.replace(HEADER, codec="zip"))


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    """A folder that is not there is said in words of ours."""
    with pytest.raises(StorageError, match="cannot write"):
        UpdateWriter(tmp_path / "absent" / "u", HEADER)
