"""The agent's own trainer process: started for work, replaced when it dies, and ended with the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from peer_world import an_order

from fedtrain.core.orders import OrderKind, Result
from fedtrain.peer import trainer_process, trainers
from fedtrain.peer.trainers import Trainers
from fedtrain.storage.mailbox import Mailbox

PRELUDE = """
import os, sys, time
from pathlib import Path
starts = Path("starts")
starts.write_text(starts.read_text() + f"{os.getpid()}\\n" if starts.exists() else f"{os.getpid()}\\n")
"""
CLAIM = f"""
sys.path.insert(0, {str(Path(trainers.__file__).parents[2])!r})
from fedtrain.storage.mailbox import Mailbox, Result
mailbox = Mailbox(Path("mailbox"))
claim = mailbox.claim("host-" + str(os.getpid()))
"""
DIE = "print('secret record 17', flush=True); os._exit(9)\n"
UNTIL_EOF = "sys.stdin.buffer.read()\n"
ORDER = an_order(0, OrderKind.SEED)


class Workplace:
    """A mailbox, and trainers that are small scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mailbox = Mailbox(folder / "mailbox")
        self.mailbox.create()
        self.abandoned: list[tuple[str, str]] = []
        self.freed: list[str] = []
        self.trainers: Trainers | None = None

    def make(self, script: str) -> Trainers:
        source = self.folder / "trainer.py"
        source.write_text(PRELUDE + textwrap.dedent(script))
        self.trainers = Trainers(
            self.mailbox,
            (sys.executable, "-S", str(source)),
            self.folder,
            self.folder / "trainer.log",
            lambda order, reason: self.abandoned.append((order, reason)),
            self.freed.append,
        )
        return self.trainers

    @property
    def pids(self) -> list[int]:
        path = self.folder / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def workplace(tmp_path: Path) -> AsyncIterator[Workplace]:
    made = Workplace(tmp_path)
    yield made
    if made.trainers is not None:
        await made.trainers.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_starts_with_the_first_order_and_ends_with_the_agent(workplace: Workplace) -> None:
    """No order, no process; several orders, one process; and none is left behind a stop."""
    trainers = workplace.make(UNTIL_EOF)
    await asyncio.sleep(0.05)
    assert workplace.pids == []
    trainers.want(ORDER.id)
    trainers.want(an_order(1).id)
    await workplace.until(lambda: workplace.pids)
    await trainers.stop()
    assert len(workplace.pids) == 1 and not alive(workplace.pids[0])
    assert not workplace.abandoned


async def test_an_order_may_cost_three_trainers(workplace: Workplace) -> None:
    """The fourth is not tried: the order is given up, and what the log quotes stays at the site."""
    workplace.mailbox.post(ORDER, None)
    trainers = workplace.make(CLAIM + DIE)
    trainers.want(ORDER.id)
    await workplace.until(lambda: workplace.abandoned)
    ((order, reason),) = workplace.abandoned
    assert order == ORDER.id and "3 times" in reason and "exit code 9" in reason
    assert "secret" not in reason
    assert len(workplace.pids) == 3
    assert not workplace.mailbox.claims(), "the last claim went back too"


async def test_a_trainers_own_sentence_goes_along(workplace: Workplace) -> None:
    """What the trainer says in fedtrain's words helps the operator, and so it travels."""
    trainers = workplace.make("print('fedtrain trainer: no data set corpus'); sys.exit(2)\n")
    trainers.want(ORDER.id)
    await workplace.until(lambda: workplace.abandoned)
    assert "no data set corpus" in workplace.abandoned[0][1]


async def test_a_trainer_that_dies_once_is_replaced(workplace: Workplace) -> None:
    """Its order goes back at once, and the next trainer finishes it."""
    workplace.mailbox.post(ORDER, None)
    second = 'mailbox.publish(Result(claim.order.id, failure="done"), None)\n'
    once = f"if len(starts.read_text().split()) == 1: os._exit(1)\n{second}"
    trainers = workplace.make(CLAIM + once + UNTIL_EOF)
    trainers.want(ORDER.id)
    await workplace.until(workplace.mailbox.results)
    assert len(workplace.pids) == 2
    assert not workplace.abandoned


async def test_only_the_order_that_was_claimed_is_blamed(workplace: Workplace) -> None:
    """An order that merely waits while a trainer dies over another one keeps its chances."""
    other = an_order(1)
    for order in (ORDER, other):
        workplace.mailbox.post(order, None)
    deadly = "if claim and claim.order.round == 0: os._exit(1)\n"
    trainers = workplace.make(CLAIM + deadly + UNTIL_EOF)
    trainers.want(ORDER.id)
    trainers.want(other.id)
    await workplace.until(lambda: workplace.abandoned)
    workplace.mailbox.discard(ORDER.id)
    await workplace.until(lambda: other.id in workplace.mailbox.claims())
    assert [order for order, _ in workplace.abandoned] == [ORDER.id]


async def test_an_idle_trainer_that_dies_is_started_with_the_next_order(workplace: Workplace) -> None:
    """Nobody is started for nothing, and the next order finds a trainer."""
    trainers = workplace.make(UNTIL_EOF)
    trainers.want(ORDER.id)
    await workplace.until(lambda: workplace.pids)
    trainers.forget(ORDER.id)
    os.kill(workplace.pids[0], signal.SIGKILL)
    await workplace.until(lambda: not alive(workplace.pids[0]))
    await asyncio.sleep(0.05)
    assert len(workplace.pids) == 1
    trainers.want(an_order(1).id)
    await workplace.until(lambda: len(workplace.pids) == 2)


async def test_a_deaf_trainer_is_ended_by_force(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that ignores SIGTERM does not outlive the agent."""
    monkeypatch.setattr(trainer_process, "END_S", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); starts.rename('deaf')\n"
    trainers = workplace.make(f"{deaf}time.sleep(60)\n")
    trainers.want(ORDER.id)
    await workplace.until((workplace.folder / "deaf").exists)
    pid = int((workplace.folder / "deaf").read_text())
    await trainers.stop()
    assert not alive(pid)


async def test_a_program_that_is_not_there_is_a_reason(workplace: Workplace, tmp_path: Path) -> None:
    """A trainer that cannot even be started gives the order up in words."""
    made = Trainers(
        workplace.mailbox,
        ("/nonexistent/python",),
        tmp_path,
        tmp_path / "trainer.log",
        lambda order, reason: workplace.abandoned.append((order, reason)),
        workplace.freed.append,
    )
    made.want(ORDER.id)
    await workplace.until(lambda: workplace.abandoned)
    assert "cannot be started" in workplace.abandoned[0][1]


async def test_a_silent_claim_goes_back(workplace: Workplace, tmp_path: Path) -> None:
    """A claim whose heartbeat stands still for the lease is there for other trainers again."""
    workplace.mailbox.post(ORDER, None)
    assert workplace.mailbox.claim("slurm-4711")
    freed: list[str] = []
    external = Trainers(
        workplace.mailbox, (), tmp_path, tmp_path / "trainer.log", lambda *_: None, freed.append
    )
    external.want(ORDER.id)
    workplace.mailbox.beat("slurm-4711", 1, ORDER.id)
    await external.look(0)
    await external.look(trainers.LEASE_MS - 1)
    assert workplace.mailbox.claim("slurm-4712") is None
    await external.look(trainers.LEASE_MS)
    assert workplace.mailbox.claim("slurm-4712") is not None


async def test_a_hanging_trainer_of_our_own_is_replaced(workplace: Workplace) -> None:
    """A stopped process is ended, so that its successor can take the order."""
    workplace.mailbox.post(ORDER, None)
    trainers_ = workplace.make(CLAIM + UNTIL_EOF)
    trainers_.want(ORDER.id)
    await workplace.until(workplace.mailbox.claims)
    await trainers_.look(0)
    await trainers_.look(trainers.LEASE_MS)
    await workplace.until(lambda: len(workplace.pids) == 2)
    assert not alive(workplace.pids[0])


async def test_claims_of_the_last_agents_trainer_go_back(workplace: Workplace) -> None:
    """An agent's own trainer cannot have outlived it: its claims go back at the agent's start."""
    workplace.mailbox.post(ORDER, None)
    assert workplace.mailbox.claim("host-1")
    await workplace.make(UNTIL_EOF).give_back_claims()
    claim = workplace.mailbox.claim("host-2")
    assert claim is not None and claim.order == ORDER
    assert workplace.mailbox.publish(Result(ORDER.id, failure="x"), None)
