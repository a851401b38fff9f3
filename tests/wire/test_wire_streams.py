"""Sessions and transfers over a real loopback server with mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from wire_loopback import (
    ZERO_DIGEST,
    Recorder,
    a_commit,
    an_order,
    blob,
    collect,
    connect,
    fetch_all,
    saying,
    serving,
)

from fedtrain.core import messages as core
from fedtrain.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    RemoteError,
    StorageError,
)
from fedtrain.wire import chunks, convert
from fedtrain.wire.calls import call
from fedtrain.wire.values import CHUNK_BYTES

pytestmark = pytest.mark.timeout(60)


# -- session ------------------------------------------------------------------------------------


async def test_a_session_speaks_both_ways(tmp_path: Path) -> None:
    """Messages arrive in order with the epoch on the envelope, and a goodbye ends the session."""
    recorder = Recorder(tmp_path)
    hello = core.Hello(core.PROTOCOL_VERSION, "0.1", "s1", ("causal_lm",), ("int8",))
    said = (hello, core.Heartbeat(), core.Goodbye("done"))
    async with serving(recorder) as port, connect(port) as client:
        answers = await collect(client.attend(saying(*said)))
    assert recorder.heard == list(said)
    assert [epoch for epoch, _ in answers] == [7, 7, 7]
    assert [type(message) for _, message in answers] == [core.Welcome, core.Cancellation, core.Cancellation]


async def test_an_error_of_the_site_ends_its_session(tmp_path: Path) -> None:
    """What the outgoing side raises is raised to the reader, and the coordinator's handler ends."""
    recorder = Recorder(tmp_path)

    async def failing() -> AsyncIterator[core.FromPeer]:
        yield core.Heartbeat()
        raise StorageError("the disk is full")

    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(StorageError, match="disk is full"):
            await collect(client.attend(failing()))
        await recorder.session_ended.wait()


async def test_a_reader_that_leaves_ends_the_session(tmp_path: Path) -> None:
    """Closing the reader's generator ends the coordinator's handler, which runs its clean-up."""
    recorder = Recorder(tmp_path)
    forever = asyncio.Event()

    async def silent() -> AsyncIterator[core.FromPeer]:
        await forever.wait()
        yield core.Heartbeat()

    async with serving(recorder) as port, connect(port) as client:
        async with aclosing(client.attend(silent())) as incoming:
            assert isinstance((await anext(incoming))[1], core.Welcome)
        await recorder.session_ended.wait()


async def test_a_hostile_session_message_ends_it_with_a_sentence(tmp_path: Path) -> None:
    """An empty envelope is answered by a status with a sentence."""
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port) as client:
        stream = client._line.channel.stream_stream(call("Session", "Attend").path)()
        await stream.write(b"")
        with pytest.raises(RemoteError, match="without a body"), client._calling("test"):
            while await stream.read() is not grpc.aio.EOF:
                pass


# -- transfers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 17, 2_500_000])
async def test_a_fetch_goes_on_from_any_byte(tmp_path: Path, offset: int) -> None:
    """From each offset, odd ones and the end included, exactly the rest of the blob comes."""
    digest, data = blob(tmp_path, 2_500_000)
    async with serving(Recorder(tmp_path)) as port, connect(port) as client:
        assert await fetch_all(client, digest, offset) == data[offset:]


async def test_fetching_what_is_not_there_is_said(tmp_path: Path) -> None:
    """An unknown blob is NotFoundError, an offset behind the end the caller's error."""
    digest, _ = blob(tmp_path, 1000)
    async with serving(Recorder(tmp_path)) as port, connect(port) as client:
        with pytest.raises(NotFoundError, match="no blob"):
            await fetch_all(client, ZERO_DIGEST)
        with pytest.raises(RemoteError, match="blob of 1000"):
            await fetch_all(client, digest, 1001)


async def test_an_upload_cut_midway_goes_on(tmp_path: Path) -> None:
    """After a cut the offer names what arrived, and the second send brings exactly the rest."""
    recorder = Recorder(tmp_path)
    digest, data = blob(tmp_path, 5 * CHUNK_BYTES + 13)
    offer = core.Offer("lm.3.0.jsc", digest, len(data))
    async with serving(recorder) as port:
        async with connect(port) as client:
            await client.offer(offer)
            stream = client._line.channel.stream_unary(call("Transfer", "Send").path)()
            await stream.write(chunks.frame(0, data[:CHUNK_BYTES], digest))
            await stream.write(chunks.frame(CHUNK_BYTES, data[CHUNK_BYTES : CHUNK_BYTES + 7]))
            while len(recorder.uploads[digest]) < CHUNK_BYTES + 7:
                await asyncio.sleep(0.005)
            stream.cancel()
        async with connect(port) as client:
            missing = await client.offer(offer)
            assert missing == core.Missing(CHUNK_BYTES + 7, len(data))
            reached: list[int] = []
            answer = await client.send_file(
                tmp_path / digest, digest, len(data), missing.offset, reached.append
            )
    assert answer == core.Missing(len(data), len(data))
    assert bytes(recorder.uploads[digest]) == data
    assert reached[-1] == len(data) and reached == sorted(reached)


async def test_a_whole_upload_at_its_end_sends_nothing_but_is_hashed(tmp_path: Path) -> None:
    """With nothing missing the file is only held against its digest."""
    digest, data = blob(tmp_path, 3000)
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port) as client:
        assert await client.send_file(tmp_path / digest, digest, 3000, 3000) == core.Missing(3000, 3000)
        (tmp_path / digest).write_bytes(data[::-1])
        with pytest.raises(IntegrityError):
            await client.send_file(tmp_path / digest, digest, 3000, 3000)
    assert not recorder.uploads


@pytest.mark.parametrize("offset", [0, CHUNK_BYTES + 1])
async def test_a_file_that_is_not_what_it_was_said_to_be_is_found(tmp_path: Path, offset: int) -> None:
    """A changed byte, in the part sent or in the part sent before, is `IntegrityError` after the send."""
    recorder = Recorder(tmp_path)
    digest, data = blob(tmp_path, 2 * CHUNK_BYTES)
    (tmp_path / digest).write_bytes(b"\xff" + data[1:])
    recorder.uploads[digest] = bytearray(offset)
    recorder.sizes[digest] = len(data)
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(IntegrityError, match="not the file that was announced"):
            await client.send_file(tmp_path / digest, digest, len(data), offset)


async def test_a_link_or_another_size_is_not_sent(tmp_path: Path) -> None:
    """A link in the file's place is not followed, and a file of another size is not begun."""
    digest, _ = blob(tmp_path, 100)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / digest)
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(StorageError, match="cannot be opened"):
            await client.send_file(link, digest, 100)
        with pytest.raises(IntegrityError, match="not a file of 101 bytes"):
            await client.send_file(tmp_path / digest, digest, 101)
    assert not recorder.uploads


async def test_a_refused_upload_says_why(tmp_path: Path) -> None:
    """A handler that refuses in the midst of a long upload is heard, whatever is still being written."""
    recorder = Recorder(tmp_path)
    digest, data = blob(tmp_path, 20 * CHUNK_BYTES)
    recorder.uploads[digest] = bytearray(5)
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(RefusedError, match="byte 5 was due and byte 0 came"):
            await client.send_file(tmp_path / digest, digest, len(data))


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([], "before its first chunk"),
        ([chunks.frame(0, b"x")], "does not name its blob"),
        ([chunks.frame(0, b"x", ZERO_DIGEST), chunks.frame(1, b"y", "1" * 64)], "two blobs"),
        ([chunks.frame(0, b"x", "../../etc")], "not a digest"),
        ([chunks.frame(0, b"", ZERO_DIGEST)], "holds 0 bytes"),
        ([chunks.frame(0, b"x" * (CHUNK_BYTES + 1), ZERO_DIGEST)], "holds 1048577 bytes"),
        ([chunks.frame(1 << 60, b"x", ZERO_DIGEST)], "beyond any blob"),
    ],
)
async def test_hostile_chunks_are_refused(tmp_path: Path, frames: list[bytes], sentence: str) -> None:
    """Chunks without a name, with two, with a path, empty, too large or too far are refused in words."""
    recorder = Recorder(tmp_path)
    recorder.uploads[ZERO_DIGEST] = bytearray()
    recorder.sizes[ZERO_DIGEST] = 2
    async with serving(recorder) as port, connect(port) as client:

        async def sending() -> AsyncIterator[bytes]:
            for frame in frames:
                yield frame

        with pytest.raises(RemoteError, match=sentence), client._calling("test"):
            await client._line.channel.stream_unary(call("Transfer", "Send").path)(sending())


async def test_a_commit_outlives_its_caller(tmp_path: Path) -> None:
    """A commit whose client is cancelled midway still runs to its end, once."""
    recorder = Recorder(tmp_path)
    recorder.commit_may_end.clear()
    async with serving(recorder) as port, connect(port) as client:
        pending = asyncio.create_task(client.commit(a_commit()))
        await recorder.commit_begun.wait()
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        # The handler must not be freed before the server has noticed: a later call is answered first.
        await client.runs()
        recorder.commit_may_end.set()
        await asyncio.wait_for(recorder.commit_ended.wait(), 20)
    assert recorder.commits == [a_commit()]


async def test_an_invitation_crosses_whole(tmp_path: Path) -> None:
    """An order that the coordinator sends is equal to the one that the site reads."""
    order = an_order()
    assert convert.decode_to_peer(convert.encode_to_peer(3, core.Invitation(order))) == (
        3,
        core.Invitation(order),
    )
