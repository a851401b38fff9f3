"""Signs of life: a heartbeat for the process, progress for the order that it works on."""

from __future__ import annotations

import threading
import time

from fedtrain.errors import FedtrainError
from fedtrain.storage.mailbox import Mailbox, Progress
from fedtrain.trainer.tasks.task import Abandoned

REPORT_S = 0.5
BEAT_S = 1.0


class OrderProgress:
    """What a session and its task say while they work on one order; see `session.OrderContext`.

    Args:
        stopping: set when the process is to end.
        steps_total: steps that the order asks for.
    """

    def __init__(self, mailbox: Mailbox, order_id: str, steps_total: int, stopping: threading.Event) -> None:
        self._mailbox = mailbox
        self._order_id = order_id
        self._steps_total = steps_total
        self._stopping = stopping
        self._phase = ""
        self._counter = 0
        self._steps = 0
        self._loss: float | None = None
        self._weight = 0
        self._train_began = 0.0
        self._due = time.monotonic() + REPORT_S

    def phase(self, name: str) -> None:
        """A new part of the work begins."""
        self._phase = name
        if name == "train":
            self._train_began = time.monotonic()
        self.alive()

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Steps and weight so far in this order, and the last loss."""
        self._steps, self._loss, self._weight = steps, loss, weight
        self.alive()

    def pause(self, seconds: float) -> None:
        """Sleep, with progress; raises `Abandoned` at once when the process is to end."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            self._stopping.wait(min(rest, REPORT_S))
            self.alive()

    def alive(self) -> None:
        """Report if it is time to; raise `Abandoned` if the work is in vain."""
        if self._stopping.is_set():
            raise Abandoned(f"order {self._order_id} was left: the trainer was told to stop")
        now = time.monotonic()
        if now < self._due:
            return
        if self._mailbox.withdrawn(self._order_id):
            raise Abandoned(f"order {self._order_id} was withdrawn")
        self._counter += 1
        seconds = now - self._train_began
        rate = self._weight / seconds if self._weight and seconds > 0 else 0.0
        self._mailbox.report(
            Progress(
                self._order_id, self._counter, self._steps, self._steps_total, self._loss, rate, self._phase
            )
        )
        self._due = now + REPORT_S


class Heartbeat:
    """A thread that moves this trainer's counter, whatever the main thread is busy with.

    The agent judges by the counter alone, so a trainer that hangs in a task still beats; for that
    case there is the order's progress.
    """

    def __init__(self, mailbox: Mailbox, trainer_id: str) -> None:
        self._mailbox = mailbox
        self._trainer_id = trainer_id
        self._order_id = ""
        self._counter = 0
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()

    def works_on(self, order_id: str) -> None:
        """Name the claimed order from the next beat on, "" for none."""
        self._order_id = order_id

    def _run(self) -> None:
        with self._wake:
            while not self._ended:
                self._counter += 1
                try:
                    self._mailbox.beat(self._trainer_id, self._counter, self._order_id)
                except FedtrainError:
                    # A full disk may be emptied again; if it stays, the agent sees no beat.
                    self._counter -= 1
                self._wake.wait(BEAT_S)
