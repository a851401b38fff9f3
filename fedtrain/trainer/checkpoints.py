"""What a site keeps between rounds, by the id of the order that made it.

    checkpoints/<run>/<order id>/checkpoint.json       facts, and the result as it was handed in
                                 state.safetensors     the task's state, e.g. optimiser moments
                                 residual.safetensors  absent where the codec loses nothing
                                 update.bin            the update as it was sent

A checkpoint is *pending* until a later order names it as its parent; nothing here decides that. It
appears by one rename, complete, and the first one of an order stays: should two trainers have done
the same order, both hand in the update that lies here. So the residual always fits what was sent.

Nothing is synced to the disk: after a power loss a checkpoint is damaged or missing at worst, it is
then taken as missing, and the site goes on from a fresh optimiser and an empty residual.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedtrain.errors import BadOrder, StorageError
from fedtrain.storage.mailbox import Result

SCHEMA = 1
DOCUMENT = "checkpoint.json"
STATE = "state.safetensors"
RESIDUAL = "residual.safetensors"
UPDATE = "update.bin"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,250}")


@dataclasses.dataclass(frozen=True)
class Facts:
    """The document of a checkpoint.

    Attributes:
        order: id of the order that made it; `fingerprint`: SHA-256 of that order's whole text.
        layout_digest: of the model that state and residual belong to.
        steps: inner steps that the site had taken in the run when it was made.
        result: the result as it was handed in.
        promise: digest of what the order promised about noise, "" for nothing.
    """

    order: str
    fingerprint: str
    layout_digest: str
    steps: int
    result: Result
    promise: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    facts: Facts

    @property
    def update(self) -> Path:
        """The update file as it was sent."""
        return self.folder / UPDATE

    @property
    def residual(self) -> Path | None:
        """The residual's file, None where nothing was left behind."""
        path = self.folder / RESIDUAL
        return path if path.exists() else None

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The task's state; `StorageError` if its file is damaged."""
        try:
            return load_file(self.folder / STATE)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"the checkpoint {self.folder} is damaged: {error}") from error


class Checkpoints:
    """The checkpoints of one mailbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, run: str, order_id: str) -> Checkpoint | None:
        """The checkpoint of an order, None if it is missing or damaged."""
        folder = self._run(run) / _checked(order_id)
        try:
            plain = json.loads((folder / DOCUMENT).read_bytes())
            if plain.pop("schema") != SCHEMA:
                return None
            result = plain.pop("result")
            result["notes"] = tuple(result["notes"])
            return Checkpoint(folder, Facts(**plain, result=Result(**result)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @contextlib.contextmanager
    def draft(self, run: str, order_id: str) -> Iterator[Path]:
        """An empty folder to make a checkpoint in; removed at the end unless it was committed."""
        folder = self._run(run) / f".{_checked(order_id)}~{secrets.token_hex(4)}"
        with _disk_errors("make", folder):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, draft: Path, facts: Facts, state: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Complete a draft that holds the update and the residual, and make it the order's checkpoint.

        Returns False if another trainer was first; its checkpoint stands.
        """
        target = draft.parent / _checked(facts.order)
        plain = {"schema": SCHEMA, **dataclasses.asdict(facts)}
        with _disk_errors("write", draft):
            save_file(dict(state), draft / STATE)
            (draft / DOCUMENT).write_text(json.dumps(plain, indent=1))
            try:
                draft.rename(target)
            except OSError:
                # A folder that is not empty is not replaced: there is one already, or its ruins.
                if self.find(draft.parent.name, facts.order) is not None:
                    return False
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
        return True

    def outgoing(self, checkpoint: Checkpoint) -> Path:
        """A copy of the update for the mailbox to move away; the mailbox takes no linked file."""
        target = checkpoint.folder.parent / f".{checkpoint.facts.order}~{secrets.token_hex(4)}"
        with _disk_errors("copy the update of", checkpoint.folder):
            shutil.copyfile(checkpoint.update, target)
        return target

    def remove(self, run: str, order_id: str) -> None:
        """Forget an order's checkpoint."""
        shutil.rmtree(self._run(run) / _checked(order_id), ignore_errors=True)

    def keep(self, run: str, order_ids: Collection[str]) -> None:
        """Remove all of the run's checkpoints but these, and what killed processes left behind."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._run(run).iterdir():
                if path.name.removeprefix(".").partition("~")[0] in order_ids:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _run(self, run: str) -> Path:
        return self._folder / _checked(run)


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise BadOrder(f"{name[:80]!r} is not the name of a run or an order, so no checkpoint can have it")
    return name


@contextlib.contextmanager
def _disk_errors(action: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot {action} {folder}: {reason}; is the disk full or read-only?") from error
