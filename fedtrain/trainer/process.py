"""The trainer's process: claim an order, carry it out, hand in the result, wait for the next.

Between orders it waits for the kernel's word that the mailbox changed; no round waits for a timer.
SIGTERM (a scheduler's walltime) gives the order back and ends the process within a second or one
step, whichever is longer; the order is then repeated from its parent's checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from fedtrain.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, FedtrainError
from fedtrain.storage.mailbox import Claim, Mailbox
from fedtrain.storage.watching import Watcher
from fedtrain.trainer import probe
from fedtrain.trainer.checkpoints import Checkpoints
from fedtrain.trainer.data import Dataset, read_datasets
from fedtrain.trainer.progress import Heartbeat, OrderProgress
from fedtrain.trainer.session import Session
from fedtrain.trainer.tasks.task import Abandoned

log = logging.getLogger("fedtrain.trainer")

WAIT_S = 60.0
"""One wait for a change, ended early by a change or a stop, and then begun again."""

END_S = 10.0
"""From the end of the input to the end by force. What is lost is repeated from the parent's checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedtrain trainer", description=__doc__.partition("\n")[0])
    parser.add_argument("mailbox", type=Path, help="folder shared with the agent")
    parser.add_argument("--data", type=Path, help="the site's peer.yaml, for its data sets")
    parser.add_argument("--once", action="store_true", help="leave when no order is waiting")
    parser.add_argument("--threads", type=int, default=1, help="for arithmetic; results depend on it (1)")
    parser.add_argument(
        "--until-eof", action="store_true", help="end when standard input ends, as it does with the agent"
    )
    parser.add_argument("--probe", metavar="ID", help="answer this question of the agent, and leave")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    if options.until_eof:
        threading.Thread(target=_end_with_input, name="input", daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    try:
        if options.probe:
            return answer(options.mailbox, options.data, options.probe)
        return run(options.mailbox, options.data, once=options.once, threads=max(1, options.threads))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FedtrainError as error:
        if options.debug:
            traceback.print_exc()
        print(f"fedtrain trainer: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if options.debug:
            raise
        print(
            f"fedtrain trainer: a bug, {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr
        )
        return EXIT_BUG


def run(folder: Path, data: Path | None, *, once: bool, threads: int) -> int:
    """Serve one mailbox until told to stop, or with `once` until no order is waiting."""
    stopping = _StopSignals()
    mailbox = Mailbox(folder)
    mailbox.create()
    datasets = read_datasets(data) if data else {}
    session = Session(datasets, Checkpoints(mailbox.checkpoints), threads)
    trainer_id = _own_id()
    log.info("trainer %s serves %s", trainer_id, folder)
    # Armed before the first look at the orders, so that none can slip in between.
    watch = Watcher([mailbox.orders_folder, mailbox.probes_folder])
    if watch.note:
        log.info("%s", watch.note)
    with stopping, watch, Heartbeat(mailbox, trainer_id) as heartbeat:
        while not stopping.event.is_set():
            claim = mailbox.claim(trainer_id)
            if claim is not None:
                heartbeat.works_on(claim.order.id)
                _serve(mailbox, session, claim, stopping.event)
                heartbeat.works_on("")
                continue
            _answer_probes(mailbox, trainer_id, datasets)
            if once:
                break
            watch.wait(WAIT_S, stopping.event)
    log.info("trainer %s ends", trainer_id)
    return EXIT_INTERRUPTED if stopping.interrupted else EXIT_DONE


def answer(folder: Path, data: Path | None, probe_id: str) -> int:
    """Answer one question, take no order, and leave. A question that is gone needs no answer."""
    mailbox = Mailbox(folder)
    datasets = read_datasets(data) if data else {}
    _answer_probes(mailbox, _own_id(), datasets, probe_id)
    return EXIT_DONE


def _answer_probes(
    mailbox: Mailbox, trainer_id: str, datasets: Mapping[str, Dataset], only: str = ""
) -> None:
    """Answer what the agent asks about this process's surroundings and data."""
    for question in mailbox.probes():
        if only in ("", question.id):
            mailbox.answer(probe.examine(question, trainer_id, mailbox.folder, datasets))
            log.info("probe %s answered", question.id)


def _own_id() -> str:
    """Which machine and process this is; a mailbox may serve several of both.

    In a container the process id is always the same: without the chance in the middle, a trainer that is
    started again would seem to hold the claims of the one that was killed, and they would never expire.
    """
    machine = socket.gethostname().split(".")[0][:40] or "trainer"
    return f"{machine}-{secrets.token_hex(3)}-{os.getpid()}"


def _serve(mailbox: Mailbox, session: Session, claim: Claim, stopping: threading.Event) -> None:
    order = claim.order
    log.info("order %s: %s, %d steps", order.id, order.kind, order.steps)
    try:
        result, file = session.work(claim, OrderProgress(mailbox, order.id, order.steps, stopping))
    except Abandoned as reason:
        log.info("%s", reason)
        if stopping.is_set():
            mailbox.expire(order.id)  # so that another trainer need not wait for our silence
        return
    won = mailbox.publish(result, file)
    done = f"failed: {result.failure}" if result.failure else f"done in {result.seconds:.2f} s"
    log.info("order %s %s%s", order.id, done, "" if won else " (not taken: withdrawn, or another was first)")


def _end_with_input() -> None:
    """Whoever started this process is gone, however it went: end as at SIGTERM, by force if that hangs."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(EXIT_INTERRUPTED)


class _StopSignals:
    """Turns SIGTERM and Ctrl-C into an event while entered; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.interrupted = False

    def __enter__(self) -> None:
        # Signals reach the main thread only; a trainer run inside a test's thread does without.
        if threading.current_thread() is threading.main_thread():
            self._before = [
                (number, signal.signal(number, self._stop)) for number in (signal.SIGTERM, signal.SIGINT)
            ]

    def __exit__(self, *_: object) -> None:
        for number, handler in getattr(self, "_before", []):
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        self.event.set()
