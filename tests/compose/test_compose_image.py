"""What runs inside the images, without an engine: the start, the health checks, the bill of materials."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from compose_files import COMPOSE

from fedtrain.errors import EXIT_USAGE


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"compose_{name}", COMPOSE / "image" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


start, health, sbom = _module("start"), _module("health"), _module("sbom")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site's folder as the agent's container has it, with an invite beside it."""
    monkeypatch.setattr(start, "SITE", tmp_path / "site")
    monkeypatch.setattr(start, "PEER_FILE", tmp_path / "site" / "peer.yaml")
    monkeypatch.setattr(start, "INVITE", tmp_path / "invite")
    (tmp_path / "site" / "state").mkdir(parents=True)
    (tmp_path / "site" / "peer.yaml").write_text("site: jsc\ncoordinator: localhost:7443\n")
    return tmp_path / "site"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would have taken the process's place."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(start, "become", lambda *words: commands.append(words) or 0)
    monkeypatch.setattr(os, "umask", lambda mask: commands.append((f"umask {mask:03o}",)))
    return commands


def test_an_agent_without_identity_and_invite_says_what_to_do(
    site: Path, begun: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started, and the sentence names the secret."""
    assert start.main(["agent"]) == EXIT_USAGE
    assert "no invite in" in capsys.readouterr().err
    assert begun == []


def test_an_invite_that_is_none_is_refused(
    site: Path, begun: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped line is refused with the words of `fedtrain join`, and no agent starts."""
    (site.parent / "invite").write_text("not an invite\n")
    assert start.main(["agent"]) == EXIT_USAGE
    assert "invite" in capsys.readouterr().err
    assert begun == []


def test_an_agent_with_an_identity_needs_no_invite(site: Path, begun: list[tuple[str, ...]]) -> None:
    """A second start attends at once, and shares what it writes with its group."""
    (site / "state" / "identity.json").write_text("{}")
    assert start.main(["agent"]) == 0
    assert begun == [("umask 007",), ("peer", "run", str(site))]


def test_a_container_without_a_site_file_says_so(
    site: Path, begun: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Agent and trainer name the file that is to be mounted."""
    (site / "peer.yaml").unlink()
    assert [start.main(["agent"]), start.main(["trainer"])] == [EXIT_USAGE, EXIT_USAGE]
    assert capsys.readouterr().err.count("peer.yaml is missing") == 2
    assert begun == []


def test_the_coordinator_is_set_up_once(
    tmp_path: Path, begun: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start makes the consortium; the second serves the same one."""
    monkeypatch.setattr(start, "HUB", tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    assert start.main(["coordinator", "demo", "localhost:7443"]) == 0
    authority = (tmp_path / "hub" / "state" / "ca.crt").read_bytes()
    assert start.main(["coordinator", "demo", "localhost:7443"]) == 0
    assert (tmp_path / "hub" / "state" / "ca.crt").read_bytes() == authority
    assert begun == [("coordinator", "serve", str(tmp_path / "hub"), "--address", "localhost:7443")] * 2


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip in a compose file names the valid choices."""
    assert start.main(["agents"]) == EXIT_USAGE
    assert "valid: coordinator NAME HOST:PORT, agent, trainer" in capsys.readouterr().err


def test_agent_and_coordinator_start_without_torch() -> None:
    """Their images hold no torch: nothing that they import may ask for it."""
    script = (
        "import sys; sys.modules.update(torch=None, safetensors=None);"
        "import fedtrain.cli.app, fedtrain.cli.peer, fedtrain.cli.coordinator, fedtrain.cli.site;"
        "import fedtrain.cli.run, fedtrain.coordinator.process, fedtrain.peer.process, fedtrain.config;"
        "import fedtrain.trainer.library"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_agent_is_healthy_while_it_is_held_and_connected(site: Path, tmp_path: Path) -> None:
    """A lock without a connection, and a connection without a lock, are both told."""
    tables = tmp_path / "net"
    tables.mkdir()
    (tables / "tcp").write_text(
        "  sl  local_address rem_address   st\n   0: 0100007F:A1B2 0100007F:1D13 01 0\n   1: 0:1 0:2 0A 0\n"
    )
    assert "no agent holds" in health.agent(site, tables)
    lock = os.open(site / "state" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert health.agent(site, tables) == ""
        (tables / "tcp").write_text("header\n")
        assert "no connection to localhost:7443" in health.agent(site, tables)
    finally:
        os.close(lock)


def test_connections_are_found_in_the_kernels_tables() -> None:
    """A connection that stands is seen by its remote port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert port in health.connected_ports(Path("/proc/net"))
            assert 2 not in health.connected_ports(Path("/proc/net"))


def test_the_trainer_is_healthy_while_its_heart_beats(tmp_path: Path) -> None:
    """Only this container's own heartbeat counts, and only a fresh one."""
    assert "cannot be read" in health.trainer(tmp_path / "none")
    (tmp_path / "somebody-else-1.json").touch()
    assert "has not begun" in health.trainer(tmp_path)
    own = tmp_path / f"{socket.gethostname().split('.')[0][:40]}-aa-1.json"
    own.touch()
    assert health.trainer(tmp_path) == ""
    an_hour_ago = time.time() - 3600
    os.utime(own, (an_hour_ago, an_hour_ago))
    assert "silent" in health.trainer(tmp_path)


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    """Python distributions and Debian packages, each once, with version and package URL."""
    status = tmp_path / "status"
    status.write_text(
        "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2+b8\n"
        "Description: shell\n more: words\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
    )
    made = sbom.document("trainer", status)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5")
    purls = [component["purl"] for component in made["components"]]
    assert len(purls) == len(set(purls))
    assert f"pkg:pypi/grpcio@{version('grpcio')}" in purls
    assert [purl for purl in purls if purl.startswith("pkg:deb")] == [
        "pkg:deb/debian/bash@5.2.15-2%2Bb8?arch=amd64"
    ]
    assert json.dumps(made) == json.dumps(sbom.document("trainer", status))
