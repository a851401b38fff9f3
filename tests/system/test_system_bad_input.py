"""What a person can get wrong, as a table: arrangement, command, exit code, and the words that must come."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from system_world import CONSORTIUM, World, fedtrain, free_port, run_file

from fedtrain.cli.session import ask
from fedtrain.wire.values import InviteOrder

pytestmark = pytest.mark.slow

Words = tuple[object, ...]


@dataclass(frozen=True)
class Case:
    """One row. `arrange` breaks something in the empty folder and returns the command to run."""

    name: str
    arrange: Callable[[World, Path], Words]
    code: int
    words: tuple[str, ...]


def case(code: int, *words: str) -> Callable[[Callable[[World, Path], Words]], Case]:
    """Makes a row of an arrangement; its docstring says what is wrong."""

    def make(arrange: Callable[[World, Path], Words]) -> Case:
        return Case(arrange.__name__.strip("_"), arrange, code, words)

    return make


def member_copy(world: World, folder: Path, **identity: Any) -> Path:
    """The operator's identity in a folder of its own, with some of it changed."""
    state = folder / "state"
    shutil.copytree(world.home / "operator", state)
    file = state / "identity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **identity}))
    return folder


def new_consortium(folder: Path, address: str) -> Path:
    """A consortium of the same name, with an authority of its own."""
    done = fedtrain("coordinator", "init", folder, "--name", CONSORTIUM, "--address", address)
    assert done.code == 0, done.err
    return folder


def run_path(folder: Path, name: str, **changes: Any) -> Path:
    """A run's file."""
    path = folder / "run.yaml"
    path.write_text(json.dumps(run_file(name, **changes)))
    return path


# -- places ------------------------------------------------------------------------------------------


@case(2, "cannot listen on", "another process may hold the port")
def _port_of_a_coordinator(world: World, folder: Path) -> Words:
    return "coordinator", "serve", new_consortium(folder / "home", world.address)


@case(2, "state/identity.json", "coordinator init")
def _no_coordinator_folder(world: World, folder: Path) -> Words:
    return "coordinator", "serve", folder / "nowhere"


@case(2, "nowhere", "coordinator init DIR", "fedtrain join")
def _no_member_folder(world: World, folder: Path) -> Words:
    return "run", "list", "--dir", folder / "nowhere"


@case(2, "tls.crt", "fedtrain join")
def _no_certificate(world: World, folder: Path) -> Words:
    member = member_copy(world, folder)
    (member / "state" / "tls.crt").unlink()
    return "run", "list", "--dir", member


@case(2, "peer.yaml")
def _no_site_folder(world: World, folder: Path) -> Words:
    return "peer", "run", folder / "nowhere"


@case(4, "another authority", "tried for 10 s")
def _wrong_authority(world: World, folder: Path) -> Words:
    home = new_consortium(folder / "home", world.address)
    return "run", "list", "--dir", home


@case(4, "127.0.0.1:", "tried for 10 s", "check that the coordinator runs")
def _nobody_listens(world: World, folder: Path) -> Words:
    return "run", "list", "--dir", member_copy(world, folder, address=f"127.0.0.1:{free_port()}")


# -- invites -----------------------------------------------------------------------------------------


@case(2, "the invite expired at", "ask the operator for a new one")
def _expired_invite(world: World, folder: Path) -> Words:
    line = ask(world.home, lambda client: client.invite(InviteOrder("tardy", "observer", 1)))
    time.sleep(1.1)  # certificates live by the clock, so nothing else makes one expire
    return "join", line, folder / "tardy"


@case(3, "used before, with another key", "tell an operator")
def _used_invite(world: World, folder: Path) -> Words:
    name = f"twice-{time.time_ns()}"
    line = ask(world.home, lambda client: client.invite(InviteOrder(name, "observer", 60)))
    assert fedtrain("join", line, folder / "first").code == 0
    return "join", line, folder / "second"


@case(2, "cut off or mistyped")
def _truncated_invite(world: World, folder: Path) -> Words:
    line = ask(world.home, lambda client: client.invite(InviteOrder("short", "observer", 60)))
    return "join", line[:-40], folder / "short"


@case(2, "this is not an invite")
def _something_else_pasted(world: World, folder: Path) -> Words:
    return "join", "please join us", folder / "other"


@case(2, "--role", "operator", "observer")
def _unknown_role(world: World, folder: Path) -> Words:
    return "site", "invite", "boss", "--role", "operater", "--dir", world.home


@case(2, "--valid", "1m to 90d")
def _impossible_validity(world: World, folder: Path) -> Words:
    return "site", "invite", "south", "--valid", "1s", "--dir", world.home


@case(3, "west is a member already")
def _name_taken(world: World, folder: Path) -> Words:
    return "site", "invite", "west", "--dir", world.home


# -- runs --------------------------------------------------------------------------------------------


@case(2, "rounds.quorum", "7 cannot be met", "east, north, west")
def _quorum_above_the_number_of_sites(world: World, folder: Path) -> Words:
    path = run_path(folder, "no-quorum", rounds={"quorum": 7})
    return "run", "start", path, "--dir", world.home


@case(2, "sites.minimum", "7 cannot be met")
def _too_few_sites(world: World, folder: Path) -> Words:
    path = run_path(folder, "no-sites", sites={"minimum": 7})
    return "run", "start", path, "--dir", world.home


@case(2, "sites.include", "atlantis is not a site here")
def _site_that_is_none(world: World, folder: Path) -> Words:
    path = run_path(folder, "no-site", sites={"include": ["atlantis", "east", "west"]})
    return "run", "check", path, "--dir", world.home


@case(3, "exists already")
def _name_of_an_older_run(world: World, folder: Path) -> Words:
    path = run_path(folder, f"no-second-{time.time_ns()}", rounds={"count": 1})
    assert fedtrain("run", "start", path, "--dir", world.home).code == 0
    return "run", "start", path, "--dir", world.home


@case(3, "no run 'atlantis'", "fedtrain run list")
def _unknown_run(world: World, folder: Path) -> Words:
    return "run", "show", "atlantis", "--dir", world.home


@case(3, "no run 'atlantis'")
def _export_of_an_unknown_run(world: World, folder: Path) -> Words:
    return "model", "export", "atlantis", folder / "model.safetensors", "--dir", world.home


@case(3, "no member 'atlantis'", "fedtrain site list")
def _unknown_member(world: World, folder: Path) -> Words:
    return "site", "show", "atlantis", "--dir", world.home


# -- journals ----------------------------------------------------------------------------------------


def spoilt_journal(folder: Path) -> Path:
    """A coordinator's folder whose journal has one flipped bit in its second row."""
    home = new_consortium(folder / "home", "127.0.0.1:7443")
    file = home / "state" / "journal.db"
    data = bytearray(file.read_bytes())
    place = data.index(b'"message_key"')
    data[place + 20] ^= 1
    file.write_bytes(data)
    return home


@case(5, "row 2", "journal.db")
def _flipped_byte_met_by_serve(world: World, folder: Path) -> Words:
    return "coordinator", "serve", spoilt_journal(folder)


@case(5, "row 2", "journal.db")
def _flipped_byte_met_by_audit(world: World, folder: Path) -> Words:
    return "audit", "verify", spoilt_journal(folder) / "state" / "journal.db"


@case(2, "no such file", "journal.db")
def _no_journal(world: World, folder: Path) -> Words:
    return "audit", "verify", folder / "state" / "journal.db"


CASES = [row for row in globals().values() if isinstance(row, Case)]


@pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)
def test_mistake_is_named(quiet: World, tmp_path: Path, row: Case) -> None:
    """Each mistake ends with its exit code, and one line on standard error says what and what to do."""
    done = fedtrain(*row.arrange(quiet, tmp_path))
    assert done.code == row.code, done
    assert done.out == "" or row.code == 5, done.out
    assert [word for word in row.words if word not in done.err] == [], done.err
    assert all(line.startswith("fedtrain: ") for line in done.err.splitlines()), done.err


def test_port_of_a_stranger_is_named(tmp_path: Path) -> None:
    """A port that some other program holds is named, with what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = fedtrain("coordinator", "serve", new_consortium(tmp_path / "home", address))
    assert done.code == 2 and address in done.err, done


RUN_FILE = """\
run: no-file
task: {name: gated, model: {parameters: 10, tensors: 1}}
rounds:
  count: 2
  steps: 3
  deadline_s: 80
  patience_s: 60
codec: {up: int8}
"""

PEER_FILE = """\
site: east
coordinator: 127.0.0.1:7443
trainer: {launch: process}
contract:
  runs: ["*"]
  tasks: [gated]
  cohort_min: 2
"""


@pytest.mark.parametrize(
    ("text", "right", "wrong", "line", "words"),
    [
        (RUN_FILE, "rounds:", "rouns:", 3, "did you mean 'rounds'"),
        (RUN_FILE, "  deadline_s:", "  dedline_s:", 6, "did you mean 'deadline_s'"),
        (RUN_FILE, "count: 2", "count: many", 4, "rounds.count"),
        (RUN_FILE, "count: 2", "count: 0", 4, "rounds.count"),
        (RUN_FILE, "count: 2", "count: -1", 4, "rounds.count"),
        (RUN_FILE, "deadline_s: 80", "deadline_s: 1 fortnight", 6, "rounds.deadline_s"),
        (RUN_FILE, "patience_s: 60", "patience_s: 600", 7, "must be below deadline_s"),
        (RUN_FILE, "up: int8", "up: int9", 8, "int8"),
        (RUN_FILE, "run: no-file", "run: No File", 1, "small letters"),
        (RUN_FILE, "  steps: 3\n", "", 3, "rounds.steps"),
        (RUN_FILE, "  count: 2", "  count: 2\n  count: 3", 5, "count"),
        (RUN_FILE, "codec: {up: int8}", "codec: {up: int8", 8, "run.yaml"),
        (PEER_FILE, "contract:", "contarct:", 4, "did you mean 'contract'"),
        (PEER_FILE, "launch: process", "launch: procss", 3, "trainer.launch"),
        (PEER_FILE, "launch: process", "launch: slurm", 3, "not available in this version"),
        (PEER_FILE, "cohort_min: 2", "cohort_min: 0", 7, "contract.cohort_min"),
        (PEER_FILE, "cohort_min: 2", "cohort_min: two", 7, "contract.cohort_min"),
        (PEER_FILE, "127.0.0.1:7443", "127.0.0.1:99999", 2, "port from 1 to 65535"),
    ],
)
def test_slip_in_a_file_is_found_at_its_line(
    tmp_path: Path, text: str, right: str, wrong: str, line: int, words: str
) -> None:
    """A wrong key, type or number in a run's or a site's file is named with file, line and what is valid."""
    assert right in text
    name = "run.yaml" if text is RUN_FILE else "peer.yaml"
    (tmp_path / name).write_text(text.replace(right, wrong))
    done = (
        fedtrain("run", "check", tmp_path / name) if text is RUN_FILE else fedtrain("peer", "run", tmp_path)
    )
    assert done.code == 2 and words in done.err, done
    place = f"{name}:{line}"
    assert place in done.err or (line == 8 and name in done.err), done.err
    assert len(done.err.splitlines()) == 1, done.err
