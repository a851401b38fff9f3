"""`fedtrain demo` itself, small: to its end, and interrupted in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_world import command, fedtrain, tail, wait_for

pytestmark = pytest.mark.slow

SITES = {"network", "numeric", "reference"}

CONFIG: dict[str, Any] = {
    "run": "library-small",
    "task": {
        "name": "causal_lm",
        "model": {"layers": 1, "heads": 2, "width": 16, "context": 16, "vocabulary": "bytes"},
        "data": "corpus",
        "training": {"optimizer": "adamw", "learning_rate": 0.003, "batch_size": 4},
    },
    "sites": {"include": "all", "minimum": 3},
    "rounds": {"count": 2, "steps": 3, "quorum": 3, "deadline_s": 100, "patience_s": 90, "heartbeat_s": 0.5},
}


def arguments(folder: Path) -> tuple[object, ...]:
    """The demo's command line, with a run file beside its folder."""
    config = folder.with_suffix(".yaml")
    config.write_text(json.dumps(CONFIG))
    return "demo", "--config", config, "--dir", folder, "--json"


def check_document(document: dict[str, Any], folder: Path) -> None:
    """The one document is what is documented, and says what is true."""
    losses = document["loss"]
    assert set(losses) == {"federated", "central", "local"}
    assert set(losses["federated"]) == set(losses["central"]) == set(losses["local"]) == SITES
    assert all(set(found) == SITES for found in losses["local"].values())
    values = [*losses["federated"].values(), *losses["central"].values()]
    values += [value for found in losses["local"].values() for value in found.values()]
    assert all(0 < value < 8 for value in values)
    assert document["journal_verified"] is True and document["rounds"] == 2
    assert 0 < document["bytes_up"] < document["bytes_float32"] > document["bytes_down"] > 0
    assert document["seconds"] > 0 and len(document["model_digest"]) == 64
    assert Path(document["model"]).is_file()
    journal = folder / "coordinator" / "state" / "journal.db"
    assert fedtrain("audit", "verify", journal, "--heads", folder / "sites").code == 0


def test_interrupted_demo_leaves_nothing_behind_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends with 130 and no process left; the same folder then goes on to the end,
    and the one document that it ends with is what is documented."""
    folder, log = tmp_path / "cut", tmp_path / "cut.log"
    with open(log, "wb") as output:
        demo = subprocess.Popen(
            command(*arguments(folder)), stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        weights = folder / "coordinator" / "state" / "models" / "library-small" / "0" / "public.safetensors"
        wait_for(weights.exists, "the first weights", lambda: tail(log))
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) >= 4, [child.cmdline() for child in children]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130, tail(log)
    finally:
        demo.kill()
        demo.wait()
    wait_for(lambda: not any(child.is_running() for child in children), "the end of all its processes")
    assert "Traceback" not in log.read_text(errors="replace")
    again = fedtrain(*arguments(folder), limit_s=200)
    assert again.code == 0, again.err
    check_document(again.document, folder)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]


def test_demo_of_another_task_is_refused(tmp_path: Path) -> None:
    """The demo compares language models; a run of something else is refused before anything starts."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**CONFIG, "task": {"name": "synthetic"}}))
    done = fedtrain("demo", "--config", config, "--dir", tmp_path / "demo")
    assert done.code == 2 and "task.name" in done.err and not (tmp_path / "demo").exists()
