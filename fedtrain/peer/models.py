"""The public model at the site, brought from the version that is held to the one that is ordered.

    models/<run>/<version>.safetensors    the newest version
    models/<run>/blobs/                   deltas and snapshots on their way in

Nothing here is synced to the disk: all of it can be fetched again, and a file that a power loss
spoilt is found by its digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedtrain.core.orders import ModelRef
from fedtrain.errors import BadOrder, BadUpdate, IntegrityError
from fedtrain.methods.aggregation import apply_delta
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader
from fedtrain.peer.jobs import closing, in_thread
from fedtrain.storage.blobs import Blobs, Upload
from fedtrain.storage.filesystem import disk_errors

_log = logging.getLogger("fedtrain.peer")

_VERSION_FILE = re.compile(r"(0|[1-9][0-9]{0,8})\.safetensors")

Link = tuple[int, str, int]
"""(version that it leads to, blob digest, size in bytes), as in `ModelRef.chain`."""


class BlobSource(Protocol):
    """Where blobs come from: `wire.client.CoordinatorClient`, or a test's own."""

    def fetch(self, digest: str, offset: int = 0) -> AsyncIterator[tuple[int, memoryview]]:
        """(offset, data) pieces from `offset` on."""


@dataclass(frozen=True)
class Route:
    """How to get to a version: from a held one (`snapshot` is None) or from a snapshot, by deltas."""

    base: int
    snapshot: Link | None
    deltas: tuple[Link, ...]

    @property
    def size_bytes(self) -> int:
        """What has to be fetched."""
        return sum(link[2] for link in (*self.deltas, *((self.snapshot,) if self.snapshot else ())))


def choose_route(ref: ModelRef, held: Collection[int]) -> Route:
    """The route with the fewest bytes; of equals the one from the newest held version.

    Raises `BadOrder` if the chain leads to the version from nowhere.
    """
    snapshots = [link for link in ref.chain[:1] if link[0] == ref.snapshot_version <= ref.version]
    deltas = {link[0]: link for link in ref.chain[1:]}
    routes = []
    for base, snapshot in [*((v, None) for v in sorted(held, reverse=True)), *((s[0], s) for s in snapshots)]:
        steps = range(base + 1, ref.version + 1)
        if base <= ref.version and all(version in deltas for version in steps):
            routes.append(Route(base, snapshot, tuple(deltas[version] for version in steps)))
    if not routes:
        raise BadOrder(f"no snapshot and deltas of the order's model lead to version {ref.version}")
    return min(routes, key=lambda route: route.size_bytes)


class PublicModels:
    """All runs' public models in `folder`; the newest version of each is kept.

    Args:
        folder: made if it is missing.
        source: where blobs are fetched from.

    Attributes:
        fetched_bytes: of all blobs in this process's life: it grows while something moves.
    """

    def __init__(self, folder: Path, source: BlobSource) -> None:
        self._folder = folder
        self._source = source
        self.fetched_bytes = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._verified: dict[Path, str] = {}

    @contextlib.asynccontextmanager
    async def at(self, run: str, ref: ModelRef) -> AsyncIterator[Path]:
        """The file of version `ref.version`, which stays in place while the block runs.

        Raises:
            UnreachableError: the connection broke; what has come stays, and the next try goes on.
            IntegrityError: the model does not match its digest even when fetched anew.
            BadOrder, NotFoundError: the order's chain leads nowhere, or is no longer served.
            StorageError: the disk refused.
        """
        async with self._locks.setdefault(run, asyncio.Lock()):
            folder = self._folder / run
            with disk_errors(f"make {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                path = await self._bring(run, folder, ref)
            except (BadUpdate, IntegrityError) as error:
                _log.warning("%s: the model held here is dropped and fetched anew (%s)", run, error)
                await in_thread(self._drop, folder)
                path = await self._bring_anew(run, folder, ref)
            yield path
            await in_thread(self._keep_newest, folder)

    async def _bring_anew(self, run: str, folder: Path, ref: ModelRef) -> Path:
        try:
            return await self._bring(run, folder, ref)
        except (BadUpdate, IntegrityError) as error:
            await in_thread(self._drop, folder)
            raise IntegrityError(
                f"version {ref.version} of {run}, fetched anew, is still not what the order names: {error}"
            ) from error

    async def _bring(self, run: str, folder: Path, ref: ModelRef) -> Path:
        route = choose_route(ref, _versions(folder))
        path = _file(folder, route.base)
        if route.snapshot is not None:
            blob = await self._fetch(folder, route.snapshot)
            with disk_errors(f"store {path}"):
                blob.replace(path)
            self._verified.pop(path, None)
        layout = await in_thread(_layout_of, path, ref.layout_digest)
        for link in route.deltas:
            blob = await self._fetch(folder, link)
            path = await in_thread(self._apply, run, path, blob, link[0], layout)
        if path not in self._verified:
            self._verified[path] = await in_thread(_digest_of, path, layout)
        if self._verified[path] != ref.digest:
            raise IntegrityError(
                f"version {ref.version} of {run} has digest {self._verified[path]}, "
                f"the order names {ref.digest}"
            )
        return path

    def _apply(self, run: str, base: Path, delta: Path, version: int, layout: Layout) -> Path:
        """One version on; what it came from is deleted only when the new file is whole."""
        target = _file(base.parent, version)
        draft = target.with_name(f".{target.name}.part")
        digest = apply_delta(base, delta, draft, layout, run, version)
        with disk_errors(f"store {target}"):
            draft.replace(target)
            delta.unlink(missing_ok=True)
        self._verified[target] = digest
        return target

    async def _fetch(self, folder: Path, link: Link) -> Path:
        """The verified blob, received from wherever an earlier try broke off."""
        _, digest, size_bytes = link
        blobs = Blobs(folder / "blobs", durable=False)
        if blobs.has(digest):
            return blobs.path(digest)
        upload = await in_thread(blobs.begin, digest, size_bytes)
        try:
            await self._receive(upload)
            return await in_thread(upload.commit)
        finally:
            upload.abandon()

    async def _receive(self, upload: Upload) -> None:
        """One piece is hashed and written while the next one comes."""
        writing: asyncio.Task[int] | None = None
        try:
            async with closing(self._source.fetch(upload.digest, upload.received)) as pieces:
                async for offset, data in pieces:
                    if writing is not None:
                        await writing
                    self.fetched_bytes += len(data)
                    writing = asyncio.create_task(in_thread(upload.write, offset, data))
        finally:
            if writing is not None:
                await writing

    def _drop(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with disk_errors(f"make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        self._verified = {path: digest for path, digest in self._verified.items() if path.parent != folder}

    def _keep_newest(self, folder: Path) -> None:
        for version in sorted(_versions(folder))[:-1]:
            path = _file(folder, version)
            with disk_errors(f"delete {path}"):
                path.unlink(missing_ok=True)
            self._verified.pop(path, None)


def _file(folder: Path, version: int) -> Path:
    return folder / f"{version}.safetensors"


def _versions(folder: Path) -> set[int]:
    with disk_errors(f"list {folder}"):
        names = [entry.name for entry in folder.iterdir()]
    return {int(match[1]) for match in map(_VERSION_FILE.fullmatch, names) if match}


def _layout_of(path: Path, layout_digest: str) -> Layout:
    """The layout of a model whose tensors are all shared and averaged; `BadUpdate` for any other."""
    with ModelReader(path) as reader:
        layout = Layout(tuple(map(Entry, reader.names, reader.shapes)))
    if layout.digest != layout_digest:
        raise BadUpdate(
            f"the tensors of {path.name} make layout {layout.digest[:16]}, "
            f"the order names {layout_digest[:16]}"
        )
    return layout


def _digest_of(path: Path, layout: Layout) -> str:
    with ModelReader(path) as reader:
        return reader.verify(layout)
