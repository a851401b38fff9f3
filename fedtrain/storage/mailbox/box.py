"""The mailbox itself: what the agent does with it, and what a trainer does with it."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtrain.core import canonical
from fedtrain.core.charges import Permit
from fedtrain.core.orders import ORDER_ID, Order, Progress, Result
from fedtrain.errors import BadMailbox, ConfigError, LocalError
from fedtrain.storage.filesystem import disk_errors
from fedtrain.storage.mailbox import documents, entries, probes
from fedtrain.storage.mailbox.documents import (
    CLAIM_FILE,
    MODEL_FILE,
    ORDER_FILE,
    PERMIT_FILE,
    RESULT_FILE,
    RESULT_FILES,
    TRAINER_ID,
    check_order_id,
    check_trainer_id,
)
from fedtrain.storage.mailbox.probes import PROBE_ID, Finding, Probe, check_probe_id

ORDERS, CLAIMS, RESULTS, PROGRESS, TRAINERS, CHECKPOINTS, PROBES, FINDINGS = FOLDERS = (
    "orders",
    "claims",
    "results",
    "progress",
    "trainers",
    "checkpoints",
    "probes",
    "findings",
)


@dataclass(frozen=True)
class Claim:
    """An order that this trainer has taken; `folder` holds `MODEL_FILE` if the order has a model.

    `permit`: what an order that promises privacy is charged for; None for one that promises none.
    """

    order: Order
    folder: Path
    permit: Permit | None = None


class Mailbox:
    """One site's mailbox in `folder`. The agent calls `create` before anything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Make the folders that are missing; `ConfigError` if something else is in their place."""
        with disk_errors(f"create the mailbox {self.folder}"):
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(parents=True)
            with entries.open_folder(self.folder.resolve()) as root:
                for name in FOLDERS:
                    with contextlib.suppress(FileExistsError):
                        entries.make_folder(root, name)
        for name in FOLDERS:
            if (self.folder / name).is_symlink() or not (self.folder / name).is_dir():
                raise ConfigError("is not a folder: remove it", file=str(self.folder / name))

    def share(self, group: int) -> None:
        """Open the mailbox to the trainer's group, where agent and trainer have an account each.

        The folders get the group, and the mark (setgid) by which all that is made in them gets it too.
        """
        with disk_errors(f"share the mailbox {self.folder} with group {group}"):
            for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
                with entries.open_folder(folder.resolve()) as descriptor:
                    entries.share_folder(descriptor, group)

    @property
    def checkpoints(self) -> Path:
        """The trainer's own folder: optimiser states, residuals, data positions."""
        return self.folder / CHECKPOINTS

    @property
    def orders_folder(self) -> Path:
        """Where an order appears: what an idle trainer watches."""
        return self.folder / ORDERS

    @property
    def results_folder(self) -> Path:
        """Where a result appears: what the agent watches."""
        return self.folder / RESULTS

    @property
    def probes_folder(self) -> Path:
        """Where a question appears: what an idle trainer watches too."""
        return self.folder / PROBES

    @property
    def findings_folder(self) -> Path:
        """Where an answer appears."""
        return self.folder / FINDINGS

    @contextlib.contextmanager
    def _open(self, action: str, *folders: str) -> Iterator[list[int]]:
        """Descriptors of these folders; what the disk refuses inside is "cannot <action>"."""
        with disk_errors(f"{action} in the mailbox {self.folder}"), contextlib.ExitStack() as stack:
            root = stack.enter_context(entries.open_folder(self.folder.resolve()))
            yield [stack.enter_context(entries.open_folder(name, root)) for name in folders]

    # The agent's side.

    def post(self, order: Order, model_path: Path | None, permit: Permit | None = None) -> None:
        """Put an order, and the model it starts from, before the trainers.

        Posting an order that is already posted, claimed or answered changes nothing.
        """
        check_order_id(order.id)
        with self._open(f"post order {order.id}", ORDERS, CLAIMS, RESULTS) as folders:
            # In the order in which an entry wanders, so that one on its way is not missed.
            if any(entries.exists(folder, order.id) for folder in folders):
                return

            def add_model(inside: int) -> None:
                if permit is not None:
                    entries.write_file(inside, PERMIT_FILE, canonical.encode(permit))
                if model_path is not None:
                    entries.share_file(model_path, inside, MODEL_FILE)

            entries.put_folder(folders[0], order.id, ORDER_FILE, canonical.encode(order), add_model)

    def withdraw(self, order_id: str) -> None:
        """Take an order back, claimed or not; a trainer at work sees it by `withdrawn`."""
        self._forget("withdraw", order_id, ORDERS, CLAIMS, PROGRESS)

    def results(self) -> list[str]:
        """Ids of orders that have a result, oldest round first."""
        with self._open("list results", RESULTS) as (results,):
            return documents.order_ids(results)

    def take_result(self, order_id: str) -> tuple[Result, Path | None]:
        """A result and the path of its file, checked but for the digest; `BadMailbox` if unfit.

        It stays in the mailbox until `discard`. The digest of the file is for the reader of its
        bytes to check, since bytes in a shared folder are only known once they are read.
        """
        check_order_id(order_id)
        with self._open(f"read the result of {order_id}", RESULTS) as (results,):
            try:
                result = documents.read_result(results, order_id)
            except FileNotFoundError as error:
                raise BadMailbox(f"the result of {order_id} is missing or incomplete") from error
        return result, self.folder / RESULTS / order_id / result.file if result.file else None

    def discard(self, order_id: str) -> None:
        """Forget an order and its result: it was handed on, or was unfit."""
        self._forget("discard", order_id, ORDERS, CLAIMS, PROGRESS, RESULTS)

    def progress(self) -> dict[str, Progress]:
        """Order id -> the trainer's last sign of progress; unfit entries are left out."""
        with self._open("read progress", PROGRESS) as (folder,):
            return documents.read_documents(folder, ORDER_ID, documents.read_progress)

    def trainers(self) -> dict[str, tuple[int, str]]:
        """Trainer id -> (heartbeat counter, id of the order it is at or "")."""
        with self._open("read heartbeats", TRAINERS) as (folder,):
            beats = documents.read_documents(folder, TRAINER_ID, documents.read_beat)
        return {trainer: (beat.counter, beat.order) for trainer, beat in beats.items()}

    def claims(self) -> dict[str, tuple[str, int]]:
        """Claimed order id -> (trainer id, its counter), for `ClaimWatch.observe`.

        A claimer that is not known ("") or never gave a heartbeat (-1) is watched all the same.
        """
        found: dict[str, tuple[str, int]] = {}
        counters = {trainer: counter for trainer, (counter, _) in self.trainers().items()}
        with self._open("read claims", CLAIMS) as (claims,):
            for order_id in documents.order_ids(claims):
                trainer = ""
                with (
                    contextlib.suppress(BadMailbox, FileNotFoundError),
                    entries.open_folder(order_id, claims) as inside,
                ):
                    trainer = entries.read_document(inside, CLAIM_FILE, documents.Claimer).trainer
                found[order_id] = (trainer, counters.get(trainer, -1))
        return found

    def expire(self, order_id: str) -> None:
        """Give an expired claim back to the other trainers; a claim that is gone is fine.

        The first claimer may still be at work: whoever publishes first wins. An order with a permit is
        taken away instead: the permit was for one execution, and the agent posts it anew with another.
        """
        check_order_id(order_id)
        with self._open(f"expire the claim of {order_id}", ORDERS, CLAIMS) as (orders, claims):
            try:
                with entries.open_folder(order_id, claims) as inside:
                    entries.remove(inside, CLAIM_FILE)
                    spent = entries.exists(inside, PERMIT_FILE)
                if spent or not entries.move_entry(claims, order_id, orders):
                    entries.remove(claims, order_id)
            except FileNotFoundError:
                return

    def sweep(self, known: Container[str]) -> None:
        """Remove every order, claim, result, progress and draft of an order not in `known`.

        At its start the agent calls this with the orders that it stands by, so that nobody works
        on yesterday's.
        """
        with self._open("sweep", ORDERS, CLAIMS, RESULTS, PROGRESS) as folders:
            for folder in folders:
                for name in entries.names(folder):
                    if documents.is_stale(name, known):
                        entries.remove(folder, name)
                for name in entries.temporaries(folder):
                    if documents.is_stale(entries.temporary_for(name), known):
                        entries.remove(folder, name)

    def ask(self, probe: Probe) -> None:
        """Put a question before the trainers."""
        check_probe_id(probe.id)
        with self._open(f"ask probe {probe.id}", PROBES) as (folder,):
            entries.write_document(folder, f"{probe.id}.json", probe)

    def finding(self, probe_id: str) -> Finding | None:
        """The answer, None while there is none; `BadMailbox` if it is unfit."""
        check_probe_id(probe_id)
        with self._open(f"read the finding of probe {probe_id}", FINDINGS) as (folder,):
            try:
                return probes.read_finding(folder, probe_id)
            except FileNotFoundError:
                return None

    def forget_probe(self, probe_id: str) -> None:
        """Take a question back, and its answer with it."""
        check_probe_id(probe_id)
        with self._open(f"forget probe {probe_id}", PROBES, FINDINGS) as folders:
            for folder in folders:
                entries.remove(folder, f"{probe_id}.json")

    def rubbish(self) -> tuple[str, ...]:
        """One sentence for each entry that no side of fedtrain writes like this; all are skipped."""
        places = (
            (ORDERS, ORDER_ID, "", documents.read_order),
            (CLAIMS, ORDER_ID, "", documents.read_order),
            (RESULTS, ORDER_ID, "", documents.read_result),
            (PROGRESS, ORDER_ID, ".json", documents.read_progress),
            (TRAINERS, TRAINER_ID, ".json", documents.read_beat),
            (PROBES, PROBE_ID, ".json", probes.read_probe),
            (FINDINGS, PROBE_ID, ".json", probes.read_finding),
        )
        found: list[str] = []
        for place, name, suffix, read in places:
            with self._open("look for rubbish", place) as (folder,):
                found += documents.unfit(place, folder, name, suffix, read)
        return tuple(found)

    # The trainer's side.

    def claim(self, trainer_id: str) -> Claim | None:
        """Take the oldest order that nobody has taken, or None."""
        check_trainer_id(trainer_id)
        with self._open("claim an order", ORDERS, CLAIMS, RESULTS) as (orders, claims, results):
            for order_id in documents.order_ids(orders):
                if entries.exists(results, order_id):
                    continue
                try:
                    order = documents.read_order(orders, order_id)
                    if not entries.move_entry(orders, order_id, claims):
                        continue
                    with entries.open_folder(order_id, claims) as inside:
                        entries.write_document(inside, CLAIM_FILE, documents.Claimer(trainer_id))
                        permit = documents.read_permit(inside, order_id)
                except (BadMailbox, FileNotFoundError):
                    continue  # unfit, taken by another trainer, or withdrawn at this moment
                return Claim(order, self.folder / CLAIMS / order_id, permit)
        return None

    def withdrawn(self, order_id: str) -> bool:
        """Whether the order is gone, so that working on it is in vain."""
        check_order_id(order_id)
        with self._open(f"look for {order_id}", CLAIMS, ORDERS) as (claims, orders):
            # Claims twice: the order may wander to either folder between two looks.
            return not any(entries.exists(folder, order_id) for folder in (claims, orders, claims))

    def publish(self, result: Result, file: Path | None) -> bool:
        """Hand in a result, moving `file` in under the name `result.file`.

        Returns False, and drops the file, if the order was withdrawn or another trainer's result
        came first.
        """
        check_order_id(result.order)
        if result.file if file is None else result.file not in RESULT_FILES:
            raise LocalError(f"a result's file is {' or '.join(RESULT_FILES)}, not {result.file!r}")

        def add_file(inside: int) -> None:
            if file is not None:
                entries.move_file(file, inside, result.file)

        won = not self.withdrawn(result.order)
        with self._open(f"publish the result of {result.order}", RESULTS) as (results,):
            if won:
                won = entries.put_folder(
                    results, result.order, RESULT_FILE, canonical.encode(result), add_file
                )
            if not won and file is not None:
                file.unlink(missing_ok=True)
        # Whoever won, nobody needs to do this order again.
        self._forget("close", result.order, ORDERS, CLAIMS, PROGRESS)
        return won

    def report(self, progress: Progress) -> None:
        """Show how far the work on an order has come."""
        check_order_id(progress.order)
        with self._open("report progress", PROGRESS) as (folder,):
            entries.write_document(folder, f"{progress.order}.json", progress)

    def probes(self) -> list[Probe]:
        """Questions that nobody has answered yet; unfit ones are left out."""
        with self._open("look for probes", PROBES, FINDINGS) as (asked, answered):
            found = documents.read_documents(asked, PROBE_ID, probes.read_probe)
            return [probe for probe in found.values() if not entries.exists(answered, f"{probe.id}.json")]

    def answer(self, finding: Finding) -> None:
        """Hand in what was found."""
        check_probe_id(finding.probe)
        check_trainer_id(finding.trainer)
        with self._open(f"answer probe {finding.probe}", FINDINGS) as (folder,):
            entries.write_document(folder, f"{finding.probe}.json", finding)

    def beat(self, trainer_id: str, counter: int, order: str) -> None:
        """Show that this trainer lives: `counter` moves with each call, `order` may be ""."""
        check_trainer_id(trainer_id)
        with self._open("give a heartbeat", TRAINERS) as (folder,):
            entries.write_document(folder, f"{trainer_id}.json", documents.Beat(counter, order))

    def _forget(self, action: str, order_id: str, *places: str) -> None:
        """Remove what is left of an order in these folders, in the order in which it wanders."""
        check_order_id(order_id)
        with self._open(f"{action} order {order_id}", *places) as folders:
            for place, folder in zip(places, folders, strict=True):
                entries.remove(folder, f"{order_id}.json" if place == PROGRESS else order_id)
