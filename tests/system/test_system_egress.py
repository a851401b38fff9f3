"""Real processes: what a site says has left is what went through the socket, and what is held stays."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from system_world import fedtrain

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from consortium import END_S, Consortium
from egress import measure

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
ROUND_PATIENCE_S = 3

RUN = """\
run: looked-at
task: {name: synthetic, model: {parameters: 20000, tensors: 4}}
sites: {minimum: 1}
rounds: {count: 1, steps: 1, quorum: 1, quorum_share: 1.0, deadline_s: 600, patience_s: 3, heartbeat_s: 0.5}
evaluate: {every: 0}
"""


def until(look: Callable[[], Any]) -> Any:
    """The first answer that is something."""
    end_s = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.2)
    return found


def document(*words: object) -> Any:
    """What `fedtrain WORDS --json` prints."""
    done = fedtrain(*words, "--json")
    assert done.code == 0, done.err
    return done.document


def test_the_account_agrees_with_the_socket(tmp_path: Path) -> None:
    """Within 1 % over uploads, one of them broken and resumed, a renewal, a crash and a restart; and with the
    coordinator's receipts."""
    found = measure(tmp_path, 300_000, 1)
    assert found["goal_met"], found
    assert found["broken_connections"] == 1 and len(found["resumed_uploads"]) == 1, found


def test_a_held_update_waits_for_a_person(tmp_path: Path) -> None:
    """A round waits beyond its patience for an update that is held, which then counts."""
    with Consortium(tmp_path, 1) as consortium:
        (name,) = consortium.names
        site = consortium.site(name)
        peer_file = site / "peer.yaml"
        peer_file.write_text(peer_file.read_text().replace("cohort_min: 1", "cohort_min: 1, approval: hold"))
        consortium.children[name].terminate()
        consortium.children[name].wait(END_S)
        consortium.launch(name)
        run_file = tmp_path / "looked-at.yaml"
        run_file.write_text(RUN)
        home = consortium.home
        until(lambda: fedtrain("run", "start", run_file, "--dir", home).code == 0)

        (weights,) = until(lambda: document("egress", "list", site)["held"])
        assert weights["kind"] == "seed"
        assert fedtrain("egress", "release", site, "looked-at.9.1.site-0").code == 3
        document("egress", "release", site, weights["order"])
        (update,) = until(
            lambda: [h for h in document("egress", "list", site)["held"] if h["kind"] == "train"]
        )
        time.sleep(2 * ROUND_PATIENCE_S)
        view = document("run", "show", "looked-at", "--dir", home)
        assert view["phase"] == "training" and view["round"]["index"] == 1, view

        shown = document("egress", "inspect", site, update["order"])
        assert len(shown["tensors"]) == 4 and shown["digest"] == update["digest"]
        assert shown["norm"] == pytest.approx(update["norm"], rel=1e-3)
        plain = fedtrain("egress", "inspect", site, update["order"])
        assert plain.code == 0 and "kurtosis" in plain.out
        assert document("egress", "release", site, update["order"])["taken"]
        until(lambda: document("run", "show", "looked-at", "--dir", home)["phase"] == "done")

        account = document("egress", "show", site, "--run", "looked-at", "--verify")
        assert [(u["kind"], u["receipt"]) for u in account["uploads"]] == [
            ("model", "stored"),
            ("update", "stored"),
        ]
        assert "released by" in account["uploads"][1]["clause"]
        assert account["problems"] == []
        assert fedtrain("egress", "show", site, "--since", "24h").code == 0
        wrong = fedtrain("egress", "show", site, "--since", "yesterday")
        assert wrong.code == 2 and "--since" in wrong.err
        consortium.check()
    rows = document("audit", "show", site / "state" / "journal.db")["rows"]
    assert json.dumps(rows).count('"BytesSent"') < 40, "never a row per heartbeat"
