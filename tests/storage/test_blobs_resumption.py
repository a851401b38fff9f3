"""Uploads under any order of events: a state machine against a model of two numbers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedtrain.errors import RemoteError
from fedtrain.storage.blobs import Blobs, Upload


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Resumption(RuleBasedStateMachine):
    """Any order of right, repeated, gapped and wrong pieces, restarts and commits, against a model."""

    @initialize(data=st.binary(min_size=1, max_size=64))
    def start(self, data: bytes) -> None:
        self.folder = Path(os.environ["FEDTRAIN_TEST_BLOBS"]) / os.urandom(8).hex()
        self.data, self.digest = data, digest_of(data)
        self.received, self.done = 0, False
        self.open()

    def open(self) -> None:
        self.blobs = Blobs(self.folder, free_bytes_min=0)
        self.upload: Upload = self.blobs.begin(self.digest, len(self.data))

    @rule(start=st.integers(0, 63), length=st.integers(0, 64))
    def send(self, start: int, length: int) -> None:
        piece = self.data[start : start + length]
        if start > len(self.data) or start > self.received:
            with pytest.raises(RemoteError):
                self.upload.write(start, piece)
        else:
            self.received = max(self.received, start + len(piece))
            assert self.upload.write(start, piece) == self.received

    @precondition(lambda self: self.received > 0)
    @rule(place=st.integers(0, 63))
    def send_otherwise(self, place: int) -> None:
        place %= self.received
        wrong = bytes([self.data[place] ^ 1]) + self.data[place + 1 :]
        with pytest.raises(RemoteError):
            self.upload.write(place, wrong)

    @rule()
    def restart(self) -> None:
        self.open()

    @rule()
    def commit(self) -> None:
        if self.received < len(self.data):
            with pytest.raises(RemoteError):
                self.upload.commit()
        else:
            assert self.upload.commit().read_bytes() == self.data
            self.done = True
            self.open()

    @invariant()
    def agrees(self) -> None:
        assert self.upload.received == self.received
        assert self.blobs.has(self.digest) == self.done

    def teardown(self) -> None:
        if hasattr(self, "upload"):
            self.upload.abandon()


def test_uploads_resume_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine above finds no order of events that loses, doubles or spoils a byte."""
    monkeypatch.setenv("FEDTRAIN_TEST_BLOBS", str(tmp_path))
    run_state_machine_as_test(
        Resumption, settings=settings(max_examples=60, stateful_step_count=20, deadline=None)
    )
