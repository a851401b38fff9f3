"""The walls around a trainer that the agent starts: raised by a real launcher, measured by a real trainer."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedtrain.core.contract import Contract
from fedtrain.errors import ConfigError
from fedtrain.peer import walls
from fedtrain.peer.launching import fixed_part, trainer_command, trainer_environment
from fedtrain.peer.probing import ENFORCED, ask_trainer, judge_walls, require_walls
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.mailbox import Finding

PATIENCE_S = 60.0


def can_isolate() -> bool:
    """Whether this machine lets us make namespaces, by another program's word."""
    tries = (["unshare", "--net", "--mount"], ["unshare", "--user", "--net", "--mount"])
    return any(subprocess.run([*words, "true"], capture_output=True).returncode == 0 for words in tries)


CAN_ISOLATE = can_isolate()


@dataclass
class Surroundings:
    """A site, and what its trainer should not reach: a server, sockets, keys."""

    settings: AgentSettings
    address: str
    hidden_socket: str
    own_socket: str
    abstract_socket: str


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    """Everything outside listens."""
    site = tmp_path / "site"
    (site / "state").mkdir(parents=True)
    (site / "state" / "tls.key").write_text("secret")
    (site / "data").mkdir()
    (site / "data" / "a.txt").write_text("text")
    (site / "peer.yaml").write_text(
        "datasets: {corpus: {path: data/*.txt, rights: {execute: [synthetic]}}}\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.TemporaryDirectory() as elsewhere,
        socket.socket(socket.AF_UNIX) as hidden,
        socket.socket(socket.AF_UNIX) as own,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        names = (f"{elsewhere}/s", str(site / "s"), f"@fedtrain-{secrets.token_hex(8)}")
        for unix, name in zip((hidden, own, abstract), names, strict=True):
            unix.bind(name.replace("@", "\0"))
            unix.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        settings = AgentSettings(
            folder=site,
            site="jsc",
            coordinator=address,
            proxy=None,
            state=site / "state",
            mailbox=site / "mailbox",
            launch="process",
            contract=Contract(),
            data_file=site / "peer.yaml",
            data_files={"corpus": (str(site / "data" / "*.txt"),)},
        )
        yield Surroundings(settings, address, *names)


def standing(settings: AgentSettings, finding: Finding) -> dict[str, bool]:
    return {wall.name: wall.stands for wall in judge_walls(settings, finding)}


def test_the_report_agrees_with_what_the_machine_grants(around: Surroundings) -> None:
    """Where namespaces can be made, no address answers, no foreign socket accepts and no key is read; where
    they cannot, the report says that the walls are missing."""
    finding = ask_trainer(around.settings, 0, PATIENCE_S)
    found = standing(around.settings, finding)
    assert found["network"] is CAN_ISOLATE
    assert found["keys"] is CAN_ISOLATE
    assert (around.hidden_socket not in finding.sockets) is CAN_ISOLATE
    assert (around.abstract_socket not in finding.sockets) is CAN_ISOLATE
    assert around.own_socket in finding.sockets or not CAN_ISOLATE, "in the site's own folder, so it is told"
    assert found["privileges"] and finding.no_new_privileges and finding.capabilities == 0


def test_without_walls_everything_is_reported_open(around: Surroundings) -> None:
    """The measurement can fail: with `isolation: none` it finds server, sockets and key."""
    settings = replace(around.settings, isolation="none")
    finding = ask_trainer(settings, 0, PATIENCE_S)
    assert f"{around.address} accepts" in finding.answered
    assert {around.hidden_socket, around.own_socket, around.abstract_socket} <= set(finding.sockets)
    assert finding.secrets == ("tls.key",)
    found = standing(settings, finding)
    assert not any(found[name] for name in ("network", "sockets", "keys"))


def test_the_agent_that_can_read_the_data_says_so(around: Surroundings) -> None:
    """An agent and a trainer of one account have no wall between network and data."""
    (data,) = [w for w in judge_walls(around.settings, a_finding()) if w.name == "data"]
    assert not data.stands and "a.txt" in data.found and data.remedy


def test_required_walls_that_cannot_stand_stop_the_agent(around: Surroundings) -> None:
    """The error names file, key and remedy, and no trainer has been started."""
    # The data lies in a folder that would have to be hidden for its sockets.
    settings = replace(
        around.settings, isolation="required", data_files={"corpus": (f"{tempfile.gettempdir()}/*.txt",)}
    )
    with pytest.raises(ConfigError) as caught:
        require_walls(settings)
    said = str(caught.value)
    assert caught.value.key == "trainer.isolation" and caught.value.file == str(settings.data_file)
    assert "user namespaces" in said and "container" in said


@pytest.mark.skipif(not CAN_ISOLATE, reason="this machine lets nobody make namespaces")
def test_required_walls_that_stand_let_the_agent_start(around: Surroundings) -> None:
    """Nothing is raised once no socket is left in the site's own folder."""
    Path(around.own_socket).unlink()
    settings = replace(around.settings, isolation="required")
    finding = ask_trainer(settings, 0, PATIENCE_S)
    missing = [name for name in ENFORCED if not standing(settings, finding)[name]]
    if missing:  # a daemon of this machine listens outside the folders that are hidden
        assert missing == ["sockets"] and finding.sockets
    else:
        require_walls(settings)


@pytest.mark.skipif(not CAN_ISOLATE, reason="this machine lets nobody make namespaces")
def test_what_the_trainer_works_on_stays_where_it_was(tmp_path: Path) -> None:
    """Files below a hidden folder are bound back under their names; their neighbours are gone."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("here")
    (tmp_path / "neighbour").touch()
    listing = "import os, sys; print(sorted(os.listdir('..')), open('a').read(), os.listdir(sys.argv[1]))"
    hidden = tmp_path / "kept" / "state"
    hidden.mkdir()
    (hidden / "key").touch()
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", walls.__file__, "--hide", str(hidden)),
            # Python itself may lie below a folder that is covered.
            *("--keep", sys.prefix, "--keep", sys.base_prefix),
            *("--", sys.executable, "-c", listing, str(hidden)),
        ],
        cwd=tmp_path / "kept",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    below = any(str(tmp_path.resolve()).startswith(place) for place in ("/tmp/", "/var/tmp/", "/run/"))
    neighbours = ["kept"] if below else ["kept", "neighbour"]
    assert (done.returncode, done.stdout) == (0, f"{neighbours} here []\n"), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
def test_root_starts_a_trainer_under_another_account() -> None:
    """User, group and groups are the other account's, and root's home is forgotten."""
    show = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.environ.get('HOME'))"
    python = next(p for p in ("/usr/bin/python3", sys.executable) if Path(p).exists())
    done = subprocess.run(
        [sys.executable, "-I", "-S", walls.__file__, "--user", "65534:65534,65533", "--", python, "-c", show],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd="/",
    )
    if done.returncode == walls.EXIT_NOT_STARTED:
        pytest.skip(f"no Python that account 65534 may start: {done.stderr}")
    three = (65534, 65534, 65534)
    assert done.stdout == f"{three} {three} [65533, 65534] None\n", done.stderr


def test_only_root_may_name_an_account(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are told which key, and what to do instead; an unknown name is told too."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match="external") as caught:
        trainer_command(replace(around.settings, trainer_user="65534"))
    assert caught.value.key == "trainer.user"
    with pytest.raises(ConfigError, match="no account"):
        trainer_command(replace(around.settings, trainer_user="nobody-here"))


def test_secrets_in_the_environment_stay_with_the_agent() -> None:
    """What a trainer needs goes on; tokens, proxies and session sockets do not."""
    ours = {"PATH": "p", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": "x"}
    theirs = {"AWS_SECRET_ACCESS_KEY": "s", "HTTPS_PROXY": "u:p@h", "SSH_AUTH_SOCK": "/s", "API_TOKEN": "t"}
    assert trainer_environment({**ours, **theirs}) == ours


@pytest.mark.parametrize(
    ("pattern", "fixed"),
    [("/d/*.txt", "/d"), ("/d/a.txt", "/d/a.txt"), ("/d/**/x/[ab]", "/d"), ("/*", "/")],
)
def test_the_fixed_part_of_a_pattern(pattern: str, fixed: str) -> None:
    """It ends before the first part with a sign of a pattern."""
    assert fixed_part(pattern) == fixed


def a_finding() -> Finding:
    return Finding("0" * 16, "host-1", "1", os.getuid(), 0, True)
