"""Real agents: processes over mutual TLS, with a real coordinator and real trainers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtrain.coordinator import init
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.peer import join
from fedtrain.storage.audit import verify
from fedtrain.storage.journal import Journal
from fedtrain.trust.folders import load_member
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import InviteOrder

PATIENCE_S = 60.0
PEER_FILE = """
site: {site}
coordinator: 127.0.0.1:{port}
trainer: {{launch: {launch}}}
contract: {{runs: ["*"], tasks: [synthetic], cohort_min: 1}}
"""


class Consortium:
    """A coordinator and its sites below one folder, each a process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        init(folder / "coordinator", "vineyard", f"127.0.0.1:{self.port}")
        self.coordinator = self.start("coordinator", "serve")

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """`fedtrain <coordinator | peer> ... FOLDER`, with its log beside the folder."""
        role = "coordinator" if name == "coordinator" else "peer"
        arguments = [sys.executable, "-m", "fedtrain.cli", role, command[0], str(self.folder / name)]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen([*arguments, *command[1:]], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def ask(self, question: Callable[[CoordinatorClient], Any]) -> Any:
        """The coordinator's answer to the operator."""
        keys = load_member(self.folder / "coordinator" / "operator")
        credentials = channel_credentials(keys.tls_key_pem, keys.certificate_pem, keys.ca_pem)

        async def asked() -> Any:
            member = keys.membership
            async with CoordinatorClient(member.address, credentials, member.server_name) as client:
                await client.connect(PATIENCE_S)
                return await question(client)

        return asyncio.run(asked())

    def add_site(self, site: str, launch: str = "process") -> Path:
        folder = self.folder / site
        join(self.ask(lambda client: client.invite(InviteOrder(site, "site", 600))), folder)
        (folder / "peer.yaml").write_text(PEER_FILE.format(site=site, port=self.port, launch=launch))
        return folder

    def run(self, rounds: int, minimum: int, seconds_per_step: float) -> None:
        task = {
            "name": "synthetic",
            "model": {"parameters": 5000, "tensors": 2},
            "data": "",
            "training": {"seconds_per_step": seconds_per_step},
        }
        spec = RunSpec(
            run="chaos", seed=1, task=json.dumps(task), sites=(), minimum=minimum, rounds=rounds, steps=4,
            quorum=minimum, quorum_share=0.5, deadline_ms=60_000, patience_ms=30_000, heartbeat_ms=500,
            late=LatePolicy.NEXT_ROUND, outer="average", outer_params={}, outer_warmup_rounds=0,
            codec_up="int8", codec_down="int8", aggregator="mean", norm_max=None, evaluate_every=0,
        )  # fmt: skip
        self.ask(lambda client: client.start(spec))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.logs()}"
            time.sleep(0.05)
        return found

    def view(self) -> dict[str, Any]:
        return self.ask(lambda client: client.run("chaos"))

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.close()


def trainers_of(site: Path) -> list[int]:
    """Process ids of the trainers that serve this site's mailbox, from their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fedtrain.trainer" in words and str(site / "mailbox").encode() in words:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_killed_agents_trainers_and_coordinators_cost_no_round(consortium: Consortium) -> None:
    """A run ends well though an agent, a trainer and the coordinator are killed, and its journals hold."""
    alpha, beta = consortium.add_site("alpha"), consortium.add_site("beta")
    agent = consortium.start("alpha", "run")
    consortium.start("beta", "run")
    consortium.run(rounds=4, minimum=2, seconds_per_step=0.25)
    consortium.until(lambda: trainers_of(alpha) and trainers_of(beta), "trainers")

    consortium.until(lambda: consortium.view()["version"] >= 1, "the first version")
    orphans = trainers_of(alpha)
    agent.kill()
    consortium.until(
        lambda: not set(orphans) & set(trainers_of(alpha)), "the end of the killed agent's trainer"
    )
    consortium.start("alpha", "run")

    consortium.until(lambda: consortium.view()["version"] >= 2, "the second version")
    for pid in trainers_of(beta):
        os.kill(pid, signal.SIGKILL)
    consortium.until(lambda: consortium.view()["version"] >= 3, "the third version")
    consortium.coordinator.kill()
    consortium.coordinator.wait()
    consortium.coordinator = consortium.start("coordinator", "serve")
    view = consortium.until(lambda: (v := consortium.view())["phase"] == "done" and v, "the end of the run")

    assert view["version"] == 4
    for site in (alpha, beta):
        report = verify(site / "state" / "journal.db", lambda *_: True)
        assert report.problems == () and report.rows > 10
        kinds = [row.kind for row in Journal.open(site / "state" / "journal.db", writer=False).read()]
        assert kinds.count("UploadAcknowledged") >= 4 and "HeadWitnessed" in kinds
        models = list((site / "state" / "models" / "chaos").glob("*.safetensors"))
        assert [path.name for path in models] == ["4.safetensors"]
    digests = {p.read_bytes() for s in (alpha, beta) for p in (s / "state" / "models").rglob("*.safetensors")}
    assert len(digests) == 1, "both sites hold the same public model"


@pytest.mark.slow
def test_an_agent_may_come_and_go(consortium: Consortium) -> None:
    """`--once` does one order a visit; Ctrl-C and SIGTERM end an agent with its trainer, each in its way."""
    alpha = consortium.add_site("alpha")
    consortium.run(rounds=1, minimum=1, seconds_per_step=0.0)
    for _ in range(3):
        assert consortium.start("alpha", "run", "--once").wait(PATIENCE_S) == 0, consortium.logs()
        if consortium.view()["phase"] == "done":
            break
    assert consortium.view()["version"] == 1
    assert not trainers_of(alpha)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        before = (consortium.folder / "alpha.log").read_text().count("attached")
        agent = consortium.start("alpha", "run")
        log = consortium.folder / "alpha.log"
        consortium.until(lambda b=before, f=log: f.read_text().count("attached") > b, "a session")
        agent.send_signal(number)
        assert agent.wait(PATIENCE_S) == code
    second = consortium.start("alpha", "run")
    consortium.until(lambda b=before, f=log: f.read_text().count("attached") > b + 1, "a session")
    assert consortium.start("alpha", "run").wait(PATIENCE_S) == 1, "one agent per folder"
    assert second.poll() is None


@pytest.mark.slow
def test_a_site_with_its_own_trainers_hands_over(consortium: Consortium) -> None:
    """With `launch: external` a visit posts the order, a trainer works meanwhile, the next visit delivers."""
    alpha = consortium.add_site("alpha", launch="external")
    consortium.run(rounds=1, minimum=1, seconds_per_step=0.0)
    trainer = [sys.executable, "-m", "fedtrain.trainer", str(alpha / "mailbox"), "--once"]
    for _ in range(6):
        assert consortium.start("alpha", "run", "--once").wait(PATIENCE_S) == 0, consortium.logs()
        if consortium.view()["phase"] == "done":
            break
        assert subprocess.run(trainer, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0
    assert consortium.view()["version"] == 1
