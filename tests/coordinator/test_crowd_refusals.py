"""What a busy coordinator says, as it crosses the wire, and as a hostile one might have written it."""

from __future__ import annotations

import resource
from typing import Any

import grpc
import pytest

from fedtrain.coordinator.descriptors import allow_descriptors
from fedtrain.errors import BusyError, StorageError
from fedtrain.wire.status import CODE_KEY, RETRY_KEY, RETRY_MS_MAX, Answering, from_rpc_error


class Context:
    """Remembers how a call was aborted."""

    def __init__(self) -> None:
        self.metadata: tuple[tuple[str, str], ...] = ()
        self.status: grpc.StatusCode | None = None

    async def abort(self, status: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.status, self.metadata = status, trailing_metadata
        raise grpc.aio.AbortError(details)


def said(**metadata: str) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in metadata.items()))
    return grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, details="full"
    )


async def test_the_moment_travels_beside_the_sentence() -> None:
    """A refusal for lack of room carries its pause; a full disk, which shares its status, does not."""
    for error, expected in (
        (BusyError("full", 250), {CODE_KEY: "busy", RETRY_KEY: "250"}),
        (StorageError("the disk is full"), {CODE_KEY: "storage"}),
    ):
        context = Context()
        with pytest.raises(grpc.aio.AbortError):
            async with Answering(context, "a call"):
                raise error
        assert (context.status, dict(context.metadata)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, expected)


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        ("1500", 1_500),
        ("0", 0),
        ("999999999", RETRY_MS_MAX),
        ("9" * 5_000, 0),
        ("-1", 0),
        ("1e9", 0),
        ("²", 0),
        ("٣", 0),
        ("", 0),
    ],
)
def test_a_pause_is_held_to_its_bounds(written: str, understood: int) -> None:
    """Whatever stands there, the pause is 0 (none was named) to ten minutes."""
    error = from_rpc_error(said(fedtrain_code="busy", fedtrain_retry_after_ms=written), "the session")
    assert isinstance(error, BusyError)
    assert (str(error), error.retry_after_ms) == ("full", understood)
    unnamed = from_rpc_error(said(fedtrain_code="busy"), "the session")
    assert isinstance(unnamed, BusyError) and unnamed.retry_after_ms == 0


@pytest.mark.parametrize(
    ("limits", "expected", "warned"),
    [
        ((1_024, 4_096), (4_096, 4_096), False),
        ((1_024, 1 << 20), (65_536, 1 << 20), False),
        ((1_024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY), False),
        ((1_024, 1_024), None, True),
        ((100_000, 100_000), None, False),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, False),
    ],
)
def test_descriptors_are_raised_as_far_as_they_may_be(
    limits: tuple[int, int],
    expected: tuple[int, int] | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A thousand sites fit behind a soft limit of 1,024 if the hard one allows; else a person is told."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: given.append(wanted))
    assert allow_descriptors(1_000) == (expected or limits)[0]
    assert given == ([expected] if expected else [])
    assert ("raise the hard limit" in caplog.text) == warned
