"""The real process over a real mailbox: orders in, results out, and every way to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtrain.trainer.process import main

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "system" / "plugin"
PATIENCE_S = 60.0


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for the condition; fail if the process ends before or patience does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


@pytest.fixture
def start(site):
    """Starts trainer processes on the site's mailbox; those still alive at the end are killed."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*more: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "fedtrain.trainer",
            str(site.mailbox.folder),
            "--data",
            str(site.peer),
            *more,
        ]
        paths = os.pathsep.join((str(ROOT), str(PLUGIN)))
        processes.append(
            subprocess.Popen(
                command,
                cwd=site.folder,
                env={**os.environ, "PYTHONPATH": paths},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def slow_task(task, seconds: float):
    """The synthetic task with steps of so many seconds."""
    return {**task, "training": {"seconds_per_step": seconds}}


def test_orders_go_in_and_results_come_out(site, start, synthetic_task):
    """A waiting process seeds, trains and evaluates as orders come, and beats while it lives."""
    process = start()
    order = site.order("seed", 0, task=synthetic_task, steps=0)
    site.mailbox.post(order, None)
    until(site.mailbox.results, process)
    model, ref = site.take_model(order)
    order = site.order("train", 1, model=ref, task=synthetic_task)
    site.mailbox.post(order, model)
    until(site.mailbox.results, process)
    assert site.mailbox.take_result(order.id)[0].norm > 0.3
    ((_, (counter, working)),) = site.mailbox.trainers().items()
    assert counter >= 1 and working == ""
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_once_leaves_when_nothing_waits(site, synthetic_task):
    """With --once all waiting orders are done, and the process ends with 0."""
    model, ref = site.first_model(synthetic_task)
    for round_index in (1, 2):
        site.mailbox.post(site.order("train", round_index, model=ref, task=synthetic_task), model)
    assert main([str(site.mailbox.folder), "--data", str(site.peer), "--once"]) == 0
    assert len(site.mailbox.results()) == 2


def test_a_configuration_that_is_wrong_ends_with_2(site, capsys):
    """A missing peer.yaml is a sentence on standard error, not a traceback."""
    assert main([str(site.mailbox.folder), "--data", "nowhere.yaml", "--once"]) == 2
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_gives_the_order_back(site, start, synthetic_task, number, code):
    """SIGTERM and Ctrl-C in the middle of an order leave it for another trainer, with no result."""
    model, ref = site.first_model(synthetic_task)
    order = site.order("train", 1, model=ref, task=slow_task(synthetic_task, 600))
    site.mailbox.post(order, model)
    process = start()
    until(lambda: site.mailbox.progress(), process)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == code
    assert site.mailbox.results() == [] and site.mailbox.claims() == {}
    assert site.mailbox.claim("another").order.id == order.id


def test_a_withdrawn_order_is_left_and_the_next_one_done(site, start, synthetic_task):
    """The trainer notices that its order is gone, drops the work and takes the next."""
    model, ref = site.first_model(synthetic_task)
    long = site.order("train", 1, model=ref, task=slow_task(synthetic_task, 600))
    site.mailbox.post(long, model)
    process = start()
    until(site.mailbox.progress, process)
    assert site.mailbox.progress()[long.id].phase == "train"
    short = site.order("train", 2, model=ref, task=synthetic_task)
    site.mailbox.post(short, model)
    site.mailbox.withdraw(long.id)
    until(site.mailbox.results, process)
    assert site.mailbox.results() == [short.id]


@pytest.mark.slow
def test_a_kill_in_the_middle_changes_no_bit(site, start, language_task):
    """SIGKILL after some steps, a new process, the same order: the digest of undisturbed work."""
    task = {**language_task, "name": "gated_lm"}
    model, ref = site.first_model()
    first = site.order("train", 1, model=ref, task=task)
    undisturbed = site.order("train", 2, model=ref, task=task, parent=first.id)
    for order in (first, undisturbed):
        site.mailbox.post(order, model)
        assert start("--once").wait(PATIENCE_S) == 0
    digest = site.mailbox.take_result(undisturbed.id)[0].digest
    disturbed = site.order("train", 2, model=ref, task=task, parent=first.id, attempt=2)
    gate = site.folder / "gate"
    gate.touch()
    site.mailbox.post(disturbed, model)
    process = start()
    until(lambda: any(each.steps > 0 for each in site.mailbox.progress().values()), process)
    process.kill()
    process.wait(PATIENCE_S)
    gate.unlink()
    assert site.mailbox.results() == [first.id, undisturbed.id]
    site.mailbox.expire(disturbed.id)
    assert start("--once").wait(PATIENCE_S) == 0
    assert site.mailbox.take_result(disturbed.id)[0].digest == digest


@pytest.mark.slow
def test_of_two_trainers_the_first_result_wins(site, start, synthetic_task):
    """An expired claim goes to a second trainer; one result stands, and both processes live on."""
    model, ref = site.first_model(synthetic_task)
    order = site.order("train", 1, model=ref, task={**synthetic_task, "name": "gated"})
    gate = site.folder / "gate"
    gate.touch()
    site.mailbox.post(order, model)
    processes = [start()]
    until(site.mailbox.progress, processes[0])
    os.kill(processes[0].pid, signal.SIGSTOP)
    gate.unlink()
    site.mailbox.expire(order.id)
    processes.append(start())
    until(site.mailbox.results, processes[1])
    result, _ = site.mailbox.take_result(order.id)
    data = site.update_bytes(order)
    os.kill(processes[0].pid, signal.SIGCONT)
    after = site.order("train", 2, model=ref, task=synthetic_task)
    until(lambda: {at for _, at in site.mailbox.trainers().values()} == {""}, processes[0])
    site.mailbox.post(after, model)
    until(lambda: after.id in site.mailbox.results(), processes[0])
    assert site.mailbox.take_result(order.id)[0] == result and site.update_bytes(order) == data
    assert all(process.poll() is None for process in processes)


@pytest.mark.slow
def test_the_memory_of_a_synthetic_order_does_not_grow_with_the_model(site, start, synthetic_task):
    """24 million parameters (96 MB) pass through a process whose memory grows by less than 48 MB."""
    psutil = pytest.importorskip("psutil")
    task = {**synthetic_task, "model": {"parameters": 24_000_000, "tensors": 7}}
    model, ref = site.first_model(task)
    process = start()
    until(lambda: site.mailbox.trainers(), process)
    before = psutil.Process(process.pid).memory_info().rss
    parent = ""
    peak = before
    for round_index in (1, 2):
        order = site.order(
            "train", round_index, model=ref, task=task, block_elements=1 << 20, parent=parent, evaluate=True
        )
        site.mailbox.post(order, model)
        while order.id not in site.mailbox.results():
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.01)
        result = site.mailbox.take_result(order.id)[0]
        assert result.failure == "" and result.notes == () and result.eval_count > 0
        site.mailbox.discard(order.id)
        parent = order.id
    assert peak - before < 48e6
