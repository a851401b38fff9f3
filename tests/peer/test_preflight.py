"""`peer check`: each line is right where all is well, and names cause and remedy where it is not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peer_world import join_site
from typer.testing import CliRunner

from fedtrain.cli.app import app
from fedtrain.peer import link, preflight
from fedtrain.trust.keys import MessageKey

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
PEER: dict[str, Any] = {
    "site": "jsc",
    "coordinator": "127.0.0.1:1",
    "datasets": {"corpus": {"path": "data/*.txt", "rights": {"execute": ["synthetic"]}}},
    "contract": {"runs": ["*"], "tasks": ["synthetic"]},
}


def make_site(folder: Path, **changes: Any) -> Path:
    """A joined site with two records; its coordinator is not there."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in "ab":
        (folder / "data" / f"{name}.txt").write_text("text of " + name)
    (folder / "peer.yaml").write_text(json.dumps(PEER | changes))
    if not (folder / "state").exists():
        join_site(folder / "state", MessageKey.generate())
    return folder


def check(folder: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """The command: its exit code, and its lines by name (the first of each)."""
    done = CliRunner().invoke(app, ["peer", "check", str(folder), "--json"])
    lines = json.loads(done.stdout)["checks"]
    return done.exit_code, {line["check"]: line for line in reversed(lines)}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for the coordinator that is not there."""
    monkeypatch.setattr(link, "PATIENCE_S", 0.2)


def test_a_sound_site_lacks_only_its_coordinator(tmp_path: Path) -> None:
    """Certificate, disk, trainer and data are ok with counts; the link failed, so the exit code is 4."""
    code, lines = check(make_site(tmp_path))
    assert code == 4 and lines["link"]["outcome"] == "failed" and "nothing listens" in lines["link"]["found"]
    for name in ("contract", "certificate", "agent", "trainer", "data corpus", "wall privileges"):
        assert lines[name]["outcome"] == "ok", lines[name]
    assert "2 records, 18 bytes, 18 examples for synthetic" in lines["data corpus"]["found"]
    assert "renews it from" in lines["certificate"]["found"]
    assert not list((tmp_path / "mailbox" / "probes").iterdir()), "the question is taken back"


def test_a_running_agent_keeps_its_lock(tmp_path: Path) -> None:
    """The check sees the lock, does its work all the same, and the holder still holds it."""
    make_site(tmp_path)
    with open(tmp_path / "state" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lines = check(tmp_path)[1]
        assert "is running" in lines["agent"]["found"] and lines["trainer"]["outcome"] == "ok"
    assert "none is running" in check(tmp_path)[1]["agent"]["found"]


def test_what_a_person_wrote_wrongly_ends_with_2(tmp_path: Path) -> None:
    """Missing data, an unknown task and another site's name are failures that name file and key."""
    datasets = {
        "gone": {"path": "nowhere/*.txt", "rights": {"execute": ["synthetic"]}},
        "odd": {"path": "data/*.txt", "rights": {"execute": ["synthetic", "no_such_task"]}},
    }
    contract = {"runs": [], "tasks": ["causal_lm"], "cohort_min": 1}
    code, lines = check(make_site(tmp_path, site="other", datasets=datasets, contract=contract))
    assert code == 2
    for name, key in (("data gone", "datasets.gone"), ("certificate", "site")):
        assert lines[name]["found"].startswith(f"{tmp_path / 'peer.yaml'}: {key}"), lines[name]
    all_lines = preflight_lines(tmp_path)
    warned = [line.found for line in all_lines if line.check == "contract"]
    assert any("allows nothing" in w for w in warned) and any("cohort_min is 1" in w for w in warned)
    assert any("causal_lm" in w and "no data set" in w for w in warned)
    assert any("no_such_task" in line.found for line in all_lines if line.check == "data odd")


def preflight_lines(folder: Path) -> tuple[preflight.Check, ...]:
    from fedtrain.cli.peer import _settings
    from fedtrain.config import load_peer

    return preflight.preflight(_settings(folder, load_peer(folder / "peer.yaml")))


def test_an_external_trainer_that_is_not_there_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, and the line says how to start one."""
    monkeypatch.setattr(preflight, "EXTERNAL_S", 0.2)
    monkeypatch.setattr(preflight, "COUNT_S", 0)
    folder = make_site(tmp_path, trainer={"launch": "external"}, datasets={})
    trainer = check(folder)[1]["trainer"]
    assert trainer["outcome"] == "failed" and "fedtrain trainer run" in trainer["found"]


def python_for_all() -> str | None:
    """A Python of our version that any account may start."""
    for python in (sys.executable, "/usr/bin/python3"):
        show = [python, "-c", "import sys; print(sys.version_info[:2])"]
        try:
            done = subprocess.run(show, user=65534, capture_output=True, text=True, timeout=60, check=False)
        except OSError:
            continue
        if done.stdout.strip() == str(sys.version_info[:2]):
            return python
    return None


def start_as(uid: int, python: str, folder: Path, *words: object) -> subprocess.Popen[str]:
    """A process under another account, with the group 65534 for the mailbox."""
    paths = os.pathsep.join([str(ROOT), *[path for path in sys.path if path.endswith("site-packages")]])
    return subprocess.Popen(
        [python, "-m", *map(str, words)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        user=uid,
        group=65534,
        extra_groups=[],
        umask=0o077,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_accounts_keep_data_and_network_apart() -> None:
    """The agent's account cannot open the data, and the trainer that counts it cannot read the keys."""
    python = python_for_all() if os.geteuid() == 0 else None
    if python is None:
        pytest.skip("takes root, and a Python that every account may start")
    agent, trainer = 65534, 65533
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        make_site(folder, trainer={"launch": "external"})
        for path in (folder / "state", *(folder / "state").rglob("*")):
            os.chown(path, agent, agent)
        for path in (folder / "data", *(folder / "data").rglob("*")):
            os.chown(path, trainer, trainer)
            path.chmod(0o700 if path.is_dir() else 0o600)
        (folder / "mailbox").mkdir()
        os.chown(folder / "mailbox", agent, 65534)
        (folder / "mailbox").chmod(0o2770)
        serving = start_as(trainer, python, folder, "fedtrain.trainer", "mailbox", "--data", "peer.yaml")
        try:
            until(lambda: list(folder.glob("mailbox/trainers/*.json")), serving)
            asking = start_as(agent, python, folder, "fedtrain.cli", "peer", "check", ".", "--json")
            out, err = asking.communicate(timeout=PATIENCE_S)
        finally:
            serving.terminate()
            serving.communicate(timeout=PATIENCE_S)
        lines = {line["check"]: line for line in json.loads(out)["checks"]}
        assert lines["data corpus"]["outcome"] == "ok" and "2 records" in lines["data corpus"]["found"], err
        for wall in ("data", "keys", "account"):
            assert lines[f"wall {wall}"]["outcome"] == "ok", lines[f"wall {wall}"]
        assert lines["wall network"]["outcome"] == "warning", "nobody has taken it from this trainer"
    finally:
        shutil.rmtree(folder)
