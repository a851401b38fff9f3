"""Files in frames: one read for many readers, one hash for what is sent."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from wire_loopback import blob

from fedtrain.errors import IntegrityError, NotFoundError, StorageError
from fedtrain.wire import chunks
from fedtrain.wire.chunks import FrameCache, HashedFile, frame, read_frame
from fedtrain.wire.v1 import transfer_pb2
from fedtrain.wire.values import CHUNK_BYTES


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets at which files were read."""
    seen: list[int] = []
    plain = chunks._read_frame_at

    def counted(path: Path, offset: int, length: int) -> bytes:
        seen.append(offset)
        return plain(path, offset, length)

    monkeypatch.setattr(chunks, "_read_frame_at", counted)
    return seen


async def whole(cache: FrameCache, path: Path, digest: str, size_bytes: int, offset: int = 0) -> bytes:
    """What a reader of the frames ends up with, in order and without gaps."""
    data = b""
    async for raw in cache.read(digest, path, size_bytes, offset):
        _, at, piece = read_frame(raw)
        assert at == offset + len(data)
        data += piece
        await asyncio.sleep(0)
    return data


async def test_four_readers_cost_one_read(tmp_path: Path, reads: list[int]) -> None:
    """Each mebibyte is read once, however many read the file side by side."""
    digest, data = blob(tmp_path, 5 * CHUNK_BYTES + 99)
    cache = FrameCache()
    found = await asyncio.gather(*(whole(cache, tmp_path / digest, digest, len(data)) for _ in range(4)))
    assert found == [data] * 4
    assert sorted(reads) == [index * CHUNK_BYTES for index in range(6)]


async def test_the_cache_keeps_no_more_than_its_limit(tmp_path: Path, reads: list[int]) -> None:
    """A reader far behind reads for itself, and the frames kept never exceed the limit."""
    digest, data = blob(tmp_path, 8 * CHUNK_BYTES)
    cache = FrameCache(limit_bytes=3 * CHUNK_BYTES)
    for _ in range(2):
        async for _ in cache.read(digest, tmp_path / digest, len(data), 0):
            assert len(cache._frames) <= 3
    assert len(reads) == 16


async def test_a_reader_that_leaves_takes_no_frame_along(tmp_path: Path) -> None:
    """One reader is cancelled while the frame that both wait for is being read; the other gets it."""
    digest, data = blob(tmp_path, 2 * CHUNK_BYTES)
    cache = FrameCache()
    leaving = asyncio.create_task(whole(cache, tmp_path / digest, digest, len(data)))
    staying = asyncio.create_task(whole(cache, tmp_path / digest, digest, len(data)))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == data


async def test_a_failed_read_is_tried_again(tmp_path: Path) -> None:
    """A blob that was missing is an error for its reader only, and is found once it is there."""
    digest, data = blob(tmp_path, 100)
    path = tmp_path / digest
    path.unlink()
    cache = FrameCache()
    with pytest.raises(NotFoundError, match="no longer kept"):
        await whole(cache, path, digest, 100)
    path.write_bytes(data)
    assert await whole(cache, path, digest, 100) == data


async def test_a_short_file_and_a_link_are_errors(tmp_path: Path) -> None:
    """A file that ends before its size is an integrity error, and a link is never followed."""
    digest, _ = blob(tmp_path, 100)
    with pytest.raises(IntegrityError, match="ends at byte 100"):
        await whole(FrameCache(), tmp_path / digest, digest, 200)
    (tmp_path / "link").symlink_to(tmp_path / digest)
    with pytest.raises(StorageError):
        await whole(FrameCache(), tmp_path / "link", digest, 100)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(0, 3 * CHUNK_BYTES), share=st.floats(0, 1))
def test_any_offset_gives_exactly_the_rest(
    tmp_path_factory: pytest.TempPathFactory, size: int, share: float
) -> None:
    """For every size and offset the frames of the cache and of the sender hold exactly the rest."""
    folder = tmp_path_factory.mktemp("blobs")
    digest, data = blob(folder, size)
    offset = int(size * share)

    async def send() -> bytes:
        with HashedFile(folder / digest, digest, size) as file:
            pieces = [read_frame(raw) async for _, raw in file.frames(offset)]
        assert [named for named, _, _ in pieces] == [digest, *[""] * (len(pieces) - 1)][: len(pieces)]
        return b"".join(piece for _, _, piece in pieces)

    assert asyncio.run(whole(FrameCache(), folder / digest, digest, size, offset)) == data[offset:]
    assert asyncio.run(send()) == data[offset:]


async def test_a_file_that_changes_while_it_is_sent_is_found(tmp_path: Path) -> None:
    """What was sent is what is hashed, so a change behind the reader's back is an integrity error."""
    digest, data = blob(tmp_path, 6 * CHUNK_BYTES)
    path = tmp_path / digest
    with HashedFile(path, digest, len(data)) as file, pytest.raises(IntegrityError, match="changed"):
        async for position, _ in file.frames(0):
            if position == CHUNK_BYTES:
                with path.open("r+b") as other:
                    other.seek(5 * CHUNK_BYTES)
                    other.write(b"\xff" * 10)


async def test_a_sender_that_stops_early_leaves_nothing_behind(tmp_path: Path) -> None:
    """Closing the generator after one frame ends its reading ahead."""
    digest, data = blob(tmp_path, 6 * CHUNK_BYTES)
    with HashedFile(tmp_path / digest, digest, len(data)) as file:
        async with aclosing(file.frames(0)) as frames:
            position, raw = await anext(frames)
    assert position == CHUNK_BYTES
    assert read_frame(raw) == (digest, 0, data[:CHUNK_BYTES])
    assert hashlib.sha256(data).hexdigest() == digest


async def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    """Opening a named pipe neither blocks nor counts as a file."""
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="not a file"):
        HashedFile(tmp_path / "pipe", "0" * 64, 0)


def test_a_frame_is_a_chunk() -> None:
    """The golden bytes of one chunk: field 2 is the offset, field 3 the data."""
    assert frame(3, b"ab") == b"\x10\x03\x1a\x02ab"
    assert read_frame(b"\x10\x03\x1a\x02ab") == ("", 3, b"ab")


@settings(max_examples=60, deadline=None)
@given(
    offset=st.integers(0, 1 << 53),
    size=st.sampled_from([1, 127, 128, 16_383, 16_384, CHUNK_BYTES - 1, CHUNK_BYTES]),
    digest=st.sampled_from(["", "ab" * 32]),
)
def test_a_frame_is_what_protobuf_would_write(offset: int, size: int, digest: str) -> None:
    """The frame that we put together by hand equals the generated code's, byte for byte."""
    data = b"x" * size
    written = transfer_pb2.Chunk(digest=digest, offset=offset, data=data).SerializeToString()
    assert frame(offset, data, digest) == written
