"""What a hostile or broken neighbour can put into the mailbox, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fedtrain.core import canonical
from fedtrain.errors import BadMailbox
from fedtrain.storage.mailbox import Mailbox, Order, OrderKind, Result
from fedtrain.storage.mailbox.entries import DOCUMENT_BYTES_MAX

ID = "run.1.0.north"
DATA = b"numbers"
ALMOST = st.from_regex(r'\{"order":"run\.1\.0\.north"(,"[a-z]+":.{0,9}){0,3}\}')


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    box = Mailbox(tmp_path / "mailbox")
    box.create()
    return box


def honest() -> dict[str, Any]:
    """The plain form of a result that would be taken."""
    digest = hashlib.sha256(DATA).hexdigest()
    return json.loads(canonical.encode(Result(ID, file="update.bin", digest=digest, size_bytes=len(DATA))))


def put(mailbox: Mailbox, document: dict[str, Any] | bytes, files: dict[str, bytes] | None = None) -> Path:
    folder = mailbox.results_folder / ID
    folder.mkdir(exist_ok=True)
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    (folder / "result.json").write_bytes(data)
    for name, content in ({"update.bin": DATA} if files is None else files).items():
        (folder / name).write_bytes(content)
    return folder


def test_the_honest_result_of_these_tests_is_taken(mailbox: Mailbox) -> None:
    """Each case below differs from this one in a single point."""
    put(mailbox, honest())
    assert mailbox.take_result(ID)[0].size_bytes == len(DATA)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../../etc/passwd"},
        {"file": "/etc/passwd"},
        {"file": "update.bin\0"},
        {"file": "update.bin/."},
        {"file": "result.json"},
        {"file": "."},
        {"file": "x" * 10_000},
        {"order": "run.2.0.north"},
        {"order": "../run.1.0.north"},
        {"size_bytes": len(DATA) - 1},
        {"size_bytes": 2**63},
        {"size_bytes": -1},
        {"size_bytes": 7.0},
        {"weight": -1},
        {"weight": 2**63},
        {"weight": True},
        {"digest": "0" * 63},
        {"digest": "A" * 64},
        {"digest": ""},
        {"file": ""},
        {"notes": ["x" * DOCUMENT_BYTES_MAX]},
        {"failure": "\u001b" * (DOCUMENT_BYTES_MAX // 2)},
        {"extra": 1},
        {"train_loss": "low"},
    ],
    ids=lambda changes: ",".join(f"{k}={str(v)[:20]!r}" for k, v in changes.items()),
)
def test_a_result_that_lies_is_refused(mailbox: Mailbox, changes: dict[str, Any]) -> None:
    """Wrong names, sizes, digests, orders, types and overlong texts are all a `BadMailbox`."""
    put(mailbox, honest() | changes)
    with pytest.raises(BadMailbox):
        mailbox.take_result(ID)
    assert len(mailbox.rubbish()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * 200_000,
        b'{"order":' * 200,
        b'{"order":"run.1.0.north","norm":NaN}',
        b'{"order":"run.1.0.north","norm":1e999}',
        b'{"order":"run.1.0.north","weight":' + b"9" * 5000 + b"}",
        b"\x80\x04\x95pickle",
        b"\xff\xfe\x00",
        b" " * (9 << 20),
    ],
    ids=["empty", "null", "deep", "cut", "nan", "infinite", "long number", "pickle", "bytes", "9 MiB"],
)
def test_bytes_that_are_no_result_are_refused(mailbox: Mailbox, data: bytes) -> None:
    """Broken, nested, huge or foreign documents end in one sentence."""
    put(mailbox, data)
    with pytest.raises(BadMailbox) as caught:
        mailbox.take_result(ID)
    assert len(str(caught.value)) < 500


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | ALMOST.map(str.encode))
def test_no_bytes_make_reading_fail_otherwise(mailbox: Mailbox, data: bytes) -> None:
    """Any document is either read or a `BadMailbox`, and the lists never fail."""
    put(mailbox, data)
    (mailbox.folder / "progress" / f"{ID}.json").write_bytes(data)
    (mailbox.folder / "trainers" / "t.json").write_bytes(data)
    try:
        result, path = mailbox.take_result(ID)
        assert result.order == ID
        assert path is None
    except BadMailbox:
        pass
    mailbox.progress()
    mailbox.trainers()
    mailbox.rubbish()


def test_a_large_layout_is_taken(mailbox: Mailbox) -> None:
    """A layout of some megabytes is what a large model needs, and passes."""
    put(mailbox, honest() | {"layout": "x" * (5 << 20)})
    assert len(mailbox.take_result(ID)[0].layout) == 5 << 20


def replace_by_link(path: Path, secret: Path) -> None:
    path.unlink()
    path.symlink_to(secret)


def replace_by_hard_link(path: Path, secret: Path) -> None:
    path.unlink()
    path.hardlink_to(secret)


def replace_by_pipe(path: Path, secret: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path, secret: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_socket(path: Path, secret: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is limited to 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


REPLACEMENTS = [replace_by_link, replace_by_hard_link, replace_by_pipe, replace_by_folder, replace_by_socket]


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("name", ["update.bin", "result.json"])
def test_only_a_plain_file_of_its_own_is_taken(
    mailbox: Mailbox, tmp_path: Path, name: str, replace: Callable[[Path, Path], None]
) -> None:
    """Links (soft or hard), pipes, sockets and folders in a file's place are refused, not opened."""
    folder = put(mailbox, honest())
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes())
    replace(folder / name, secret)
    with pytest.raises(BadMailbox):
        mailbox.take_result(ID)
    assert len(mailbox.rubbish()) == 1
    mailbox.discard(ID)
    assert mailbox.results() == []
    assert secret.exists()


def test_a_link_in_the_place_of_a_folder_is_not_entered(mailbox: Mailbox, tmp_path: Path) -> None:
    """A result folder, or the whole `results/`, that is a link to elsewhere is refused."""
    elsewhere = put(mailbox, honest()).rename(tmp_path / "elsewhere")
    (mailbox.results_folder / ID).symlink_to(elsewhere)
    assert mailbox.results() == []
    with pytest.raises(BadMailbox):
        mailbox.take_result(ID)
    mailbox.discard(ID)
    assert (elsewhere / "update.bin").exists()
    mailbox.results_folder.rmdir()
    mailbox.results_folder.symlink_to(tmp_path)
    with pytest.raises(BadMailbox, match="results"):
        mailbox.results()


def test_discarding_does_not_reach_through_links(mailbox: Mailbox, tmp_path: Path) -> None:
    """Removing a folder that holds links to the outside removes the links only."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    folder = put(mailbox, honest())
    (folder / "link").symlink_to(outside)
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(outside / "kept")
    mailbox.discard(ID)
    assert not folder.exists()
    assert (outside / "kept").read_bytes() == b"x"


def test_a_missing_file_is_refused(mailbox: Mailbox) -> None:
    """A result whose document or file is absent is incomplete, whether or not it was ever there."""
    folder = put(mailbox, honest(), files={})
    with pytest.raises(BadMailbox, match="incomplete"):
        mailbox.take_result(ID)
    (folder / "result.json").unlink()
    with pytest.raises(BadMailbox, match="incomplete"):
        mailbox.take_result(ID)
    assert mailbox.rubbish() == (f"results: '{ID}' is incomplete",)


def test_rubbish_is_skipped_and_reported_without_its_control_codes(mailbox: Mailbox) -> None:
    """Foreign names and broken documents stop nobody, and are reported with escapes made harmless."""
    root = mailbox.folder
    (root / "orders" / "\x1b[2Jnot an order").mkdir()
    (root / "orders" / "run.3.0.north").mkdir()
    (root / "claims" / "README").write_text("hello")
    (root / "results" / ID).write_text("a file, not a folder")
    (root / "progress" / f"{ID}.json").write_text("{}")
    (root / "progress" / "core").write_text("dump")
    (root / "trainers" / "t.json").write_text('{"counter":1e9,"order":""}')
    (root / "trainers" / "u.json").write_text('{"counter":1,"order":"../.."}')
    assert mailbox.claim("t") is None
    assert (mailbox.results(), mailbox.progress(), mailbox.trainers(), mailbox.claims()) == ([], {}, {}, {})
    mailbox.sweep(set())
    report = mailbox.rubbish()
    assert len(report) == 5
    assert all(line.isprintable() for line in report)
    assert any("not an order" in line for line in report)


def test_a_trainer_skips_an_order_that_is_unfit(mailbox: Mailbox) -> None:
    """A trainer passes over orders with a wrong name, schema or link and takes the next good one."""
    good = Order(
        ID, OrderKind.SEED, "run", 1, 0, "north", 1, None, 0, False, "", (), ("north",), "{}", "f32", 64, 1000
    )
    mailbox.post(good, None)
    plain = json.loads(canonical.encode(good))
    for name, document in (
        ("run.0.0.north", plain),
        ("run.0.1.north", plain | {"id": "run.0.1.north", "kind": "delete"}),
        ("run.0.2.north", plain | {"id": "run.0.2.north", "steps": -1}),
    ):
        (mailbox.orders_folder / name).mkdir()
        (mailbox.orders_folder / name / "order.json").write_text(json.dumps(document))
    claim = mailbox.claim("t")
    assert claim is not None
    assert claim.order == good
    assert len(mailbox.rubbish()) == 3


def test_a_tree_too_deep_to_delete_is_put_out_of_sight(mailbox: Mailbox) -> None:
    """A result with thousands of nested folders is discarded without an error."""
    put(mailbox, honest())
    here = os.open(mailbox.results_folder / ID, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    mailbox.discard(ID)
    assert mailbox.results() == []
    assert mailbox.rubbish() == ()
    # pytest's own clean-up would meet the same limit.
    subprocess.run(["rm", "-rf", str(mailbox.folder)], check=True)
