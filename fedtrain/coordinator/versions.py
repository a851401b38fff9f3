"""The run's versions on the coordinator's disk: exact model, public model, outer state.

    models/<run>/<version>/  exact.f32  public.safetensors  outer-*.f32

A version's folder appears by one rename after its files are on the disk, so a half-made one is never
taken for whole. Making it again gives the same bits: after a crash the aggregation is just repeated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtrain.coordinator import unmasking
from fedtrain.core import effects as fx
from fedtrain.core.rollback import digest_of, way_to
from fedtrain.core.state import Link, RunState
from fedtrain.errors import BadUpdate, IntegrityError, NotFoundError
from fedtrain.methods.aggregation import Aggregation, Contribution, aggregate, apply_delta, init_exact
from fedtrain.methods.layout import Layout
from fedtrain.methods.modelfile import ModelReader, renumber
from fedtrain.methods.vectors import ELEMENT_BYTES
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.filesystem import disk_errors, make_folder, sync_folder

PUBLIC = "public.safetensors"
EXACT = "exact.f32"
STATE_FILES = "outer-*.f32"
STEP_FILES = "step-*"
SNAPSHOT = ".snapshot"
BARE = ".bare"
"""Folder of a draft with the mean of masked updates, for as long as it is needed."""

SYNCS_AT_ONCE = 4
THREADS = max(2, min(8, os.cpu_count() or 1))
"""For blocks of an aggregation; the result does not depend on it."""


@dataclass(frozen=True)
class Seeded:
    """What an initial model turned out to be."""

    model_digest: str
    layout_digest: str
    num_elements: int


@dataclass(frozen=True)
class Made:
    """A new version: what `RoundAggregated` says of it."""

    model_digest: str
    delta: str
    delta_bytes: int
    snapshot: str
    snapshot_bytes: int
    update_norm: float


@dataclass(frozen=True)
class Restored:
    """An earlier version as the newest: what `VersionRestored` says of it."""

    model_digest: str
    snapshot: str
    snapshot_bytes: int


class Versions:
    """Folder of versions of all runs."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs

    def public(self, run: str, version: int) -> Path:
        """The public model's file of one version."""
        return self._at(run, version) / PUBLIC

    def seed(self, run: str, blob: str, layout_json: str) -> Seeded:
        """Check an uploaded initial model against its layout, and make version 0 of it.

        Raises `BadUpdate` if file and layout do not agree or a value is not finite.
        """
        layout = Layout.from_json(layout_json)
        source = self._blobs.path(blob)
        with ModelReader(source) as reader:
            if reader.run != run or reader.version != 0:
                raise BadUpdate(
                    f"the initial model is of {reader.run} version {reader.version}, not of {run} 0"
                )
            digest = reader.verify(layout)
        draft = self._draft(run, 0)
        init_exact(source, draft / EXACT)
        _sync(draft / EXACT)
        os.link(source, draft / PUBLIC)
        self._finish(draft, self._at(run, 0))
        return Seeded(digest, layout.digest, layout.num_elements)

    def make(self, run: RunState, effect: fx.Aggregate, hold: Callable[[str], None]) -> Made:
        """Compute and store the version that the effect asks for.

        `hold` is told of each blob before it appears, so that it is not collected as unknown.
        """
        spec, model = run.spec, run.model
        assert model is not None, "a round aggregates onto a model"
        base = self._at(spec.run, effect.base_version)
        self._check_space(base, model.num_elements * (2 if effect.masks else 1))
        draft = self._draft(spec.run, effect.base_version + 1)
        with self._contributions(run, effect, draft) as contributions:
            result = aggregate(
                Aggregation(
                    run=spec.run,
                    seed=spec.seed,
                    round_index=effect.round,
                    version=effect.base_version,
                    layout=Layout.from_json(model.layout),
                    contributions=contributions,
                    outer_name=effect.outer,
                    outer_params=spec.outer_params if effect.outer == spec.outer else {},
                    aggregator=spec.aggregator,
                    norm_max=spec.norm_max,
                    codec_down=spec.codec_down,
                    block_elements=spec.block_elements,
                    exact_path=base / EXACT,
                    public_path=base / PUBLIC,
                    state_dir_in=base,
                    target=draft,
                ),
                threads=THREADS,
            )
        hold(result.delta_digest)
        snapshot, snapshot_bytes = "", 0
        if effect.snapshot:
            snapshot, snapshot_bytes = file_digest(result.public_path), result.public_bytes
            hold(snapshot)
            os.link(result.public_path, draft / SNAPSHOT)
        # Each sync waits for the disk, so they wait side by side.
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
            waits: list[Future[object]] = [
                pool.submit(self._blobs.adopt, result.delta_path, result.delta_digest, trusted=True)
            ]
            if snapshot:
                waits.append(pool.submit(self._blobs.adopt, draft / SNAPSHOT, snapshot, trusted=True))
            waits += [pool.submit(_sync, path) for path in (result.exact_path, result.public_path)]
            waits += [pool.submit(_sync, path) for path in draft.glob(STATE_FILES)]
            for wait in waits:
                wait.result()
        self._finish(draft, self._at(spec.run, effect.base_version + 1))
        return Made(
            model_digest=result.model_digest,
            delta=result.delta_digest,
            delta_bytes=result.delta_bytes,
            snapshot=snapshot,
            snapshot_bytes=snapshot_bytes,
            update_norm=result.update_norm,
        )

    def restore(self, run: RunState, effect: fx.Restore, hold: Callable[[str], None]) -> Restored:
        """Make an earlier public model the newest version, from its snapshot and the deltas behind that.

        The exact model is the public one, and there is no outer state: both belong to the path that was
        left. Raises `IntegrityError` if the bits are not those that were published, or a blob is damaged.
        """
        name, model = run.spec.run, run.model
        assert model is not None, "what is restored was there"
        self._check_space(self._at(name, effect.base_version), model.num_elements)
        draft, layout = self._draft(name, effect.round), Layout.from_json(model.layout)
        public = draft / PUBLIC
        source = self._rebuilt(name, way_to(model, effect.version), draft, layout)
        made = Restored(*renumber(source, public, layout, name, effect.round))
        if made.model_digest != digest_of(run, effect.version):
            raise IntegrityError(
                f"version {effect.version} of {name}, made again, has digest {made.model_digest}, and "
                f"{digest_of(run, effect.version)} was published: restore the coordinator's folder"
            )
        for step in draft.glob(STEP_FILES):
            step.unlink()
        init_exact(public, draft / EXACT)
        hold(made.snapshot)
        os.link(public, draft / SNAPSHOT)
        self._blobs.adopt(draft / SNAPSHOT, made.snapshot, trusted=True)
        for path in (public, draft / EXACT):
            _sync(path)
        self._finish(draft, self._at(name, effect.round))
        return made

    def _rebuilt(self, run: str, way: tuple[Link, ...], draft: Path, layout: Layout) -> Path:
        """The public model at the end of the way; steps on it lie in the draft."""
        for _, blob, _ in way:
            self._blobs.check(blob)
        (_, snapshot, _), *deltas = way
        source = self._blobs.path(snapshot)
        for version, blob, _ in deltas:
            step = draft / f"step-{version}"
            apply_delta(source, self._blobs.path(blob), step, layout, run, version, THREADS)
            if source.parent == draft:
                source.unlink()
            source = step
        return source

    def check(self, contributions: tuple[fx.Contribution, ...]) -> dict[str, str]:
        """Hold every update against its digest once more; blob -> what is wrong with it.

        A disk may have changed or lost one since its commit. What is damaged is removed.
        """
        found: dict[str, str] = {}

        def check(blob: str) -> None:
            try:
                self._blobs.check(blob)
            except IntegrityError:
                found[blob] = "damaged"
            except NotFoundError:
                found[blob] = "gone"

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(check, [item.blob for item in contributions]))
        return found

    def collect(self, run: str, keep_version: int) -> None:
        """Delete versions older than `keep_version`, and what a crash left half-made or half-deleted.

        A version leaves its place by one rename, so whoever finds it there finds it whole.
        """
        folder = self._folder / run
        if not folder.is_dir():
            return
        for entry in sorted(folder.iterdir()):
            number = entry.name.lstrip(".").partition(".")[0]
            if number.isdigit() and int(number) < keep_version:
                with disk_errors(f"delete {entry}"):
                    gone = entry if entry.name.startswith(".") else _move_away(entry)
                    shutil.rmtree(gone, ignore_errors=True)

    def _check_space(self, base: Path, num_elements: int) -> None:
        """The next version takes what its base takes, and at most a delta and an outer state more.

        Asked before, because the last free bytes belong to the journal.
        """
        with disk_errors(f"look at {base}"):
            base_bytes = sum(path.stat().st_size for path in base.iterdir())
        self._blobs.check_space(base_bytes + 2 * ELEMENT_BYTES * num_elements)

    @contextmanager
    def _contributions(
        self, run: RunState, effect: fx.Aggregate, draft: Path
    ) -> Iterator[tuple[Contribution, ...]]:
        """What goes into the version: the updates; of masked ones their mean, gone when this is left."""
        contributions = tuple(self._contribution(item) for item in effect.contributions)
        if effect.masks is None:
            yield contributions
            return
        bare = draft / BARE
        try:
            with disk_errors(f"make {bare}"):
                make_folder(bare)
            yield (unmasking.mean_of(run, effect, contributions, bare / unmasking.MEAN, THREADS),)
        finally:
            shutil.rmtree(bare, ignore_errors=True)

    def _contribution(self, item: fx.Contribution) -> Contribution:
        path = str(self._blobs.path(item.blob))
        return Contribution(site=item.site, order=item.order, path=path, weight=item.weight, norm=item.norm)

    def _at(self, run: str, version: int) -> Path:
        return self._folder / run / str(version)

    def _draft(self, run: str, version: int) -> Path:
        """An empty folder to make a version in; what an earlier try left is thrown away."""
        draft = self._folder / run / f".{version}.part"
        with disk_errors(f"make {draft}"):
            shutil.rmtree(draft, ignore_errors=True)
            make_folder(draft)
        return draft

    def _finish(self, draft: Path, final: Path) -> None:
        """The folder in place by one rename; its files are on the disk."""
        with disk_errors(f"store {final}"):
            sync_folder(draft)
            # One that is there was made before a crash and never journaled.
            old = _move_away(final) if final.exists() else None
            draft.rename(final)
            sync_folder(final.parent)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)


def _move_away(version: Path) -> Path:
    """Take a version out of its place by one rename, so that nobody ever finds half of it there."""
    gone = version.with_name(f".{version.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    return version.rename(gone)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with disk_errors(f"sync {path}"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
