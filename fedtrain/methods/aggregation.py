"""One round's numbers, out of core: N update files and version v in, version v+1 and its delta out.

For every range of the flat vector: decode all updates in canonical order of site names, combine,
take the outer step on the coordinator's *exact* model, encode the difference to the *public* model,
and add what that decodes to onto the public model:

    exact'  = outer(exact, combined)
    delta   = encode(exact' - public)
    public' = public + decode(delta)

So what the downlink's codec loses stays in exact' - public' and goes out with a later delta. Sites
add the same decoded values (`apply_delta`), so the public models are equal bit for bit. The result
depends on neither arrival order, nor threads, nor the memory bound: every operation is per element,
chance is a function of (block, index), and norms are sums over fixed chunks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedtrain.core.orders import parse_order_id
from fedtrain.errors import BadUpdate, IntegrityError, LocalError
from fedtrain.methods.aggregators import aggregator, normalised_weights
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.files import StrPath, create_target, open_source, read_exactly, write_exactly
from fedtrain.methods.layout import Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.outer import OuterOptimiser, outer
from fedtrain.methods.ranges import RANGE_ELEMENTS_MAX, cut, pass_through, range_elements
from fedtrain.methods.updatefile import UpdateFacts, UpdateHeader, UpdateReader, UpdateWriter, check_facts
from fedtrain.methods.vectors import CHUNK_ELEMENTS, ELEMENT_BYTES, Floats, chunk_count, norm_of, square_sums

MEMORY_BYTES_MAX = 64 << 20
_FLOAT_BUFFERS = 4  # decoded, combined, exact, public
_OCTET_BYTES = 5  # the largest encoding, a little above 4 bytes an element


@dataclass(frozen=True)
class Contribution:
    """One update that counts in the round.

    Attributes:
        site, order: who made it, for which order (`<run>.<round>.<attempt>.<site>`).
        path: its update file, already inspected.
        weight: tokens or examples, discounted for lateness by the caller; positive.
        norm: what `inspect` returned for it.
    """

    site: str
    order: str
    path: StrPath
    weight: float
    norm: float


@dataclass(frozen=True)
class Aggregation:
    """All that a round's result is a function of, and the folder to write it into.

    Attributes:
        run, seed, round_index: they seed the delta's stochastic rounding.
        version: of the base; the result is version + 1.
        layout: of the model.
        contributions: in any order.
        outer_name, outer_params: the outer optimiser and its settings that differ from the default.
        aggregator: a name in `AGGREGATORS`.
        norm_max: updates above this norm are scaled down to it; None for no bound.
        codec_down, block_elements: of the delta.
        exact_path: raw float32 little endian, the coordinator's own model of version `version`.
        public_path: the public model file of that version.
        state_dir_in: folder with the outer optimiser's vectors; without them it starts afresh.
        target: an existing folder that holds none of the inputs; files in it are overwritten.
    """

    run: str
    seed: int
    round_index: int
    version: int
    layout: Layout
    contributions: tuple[Contribution, ...]
    outer_name: str
    outer_params: Mapping[str, float]
    aggregator: str
    norm_max: float | None
    codec_down: str
    block_elements: int
    exact_path: StrPath
    public_path: StrPath
    state_dir_in: StrPath | None
    target: StrPath


@dataclass(frozen=True)
class AggregationResult:
    """Files of version + 1 in the target folder. Nothing is synchronised to disk yet.

    `delta_digest` is the SHA-256 of the delta's file, `model_digest` the public model's;
    `update_norm` is the L2 norm of the combined pseudo-gradient.
    """

    delta_path: Path
    delta_digest: str
    delta_bytes: int
    exact_path: Path
    public_path: Path
    public_bytes: int
    model_digest: str
    update_norm: float


def state_file(folder: StrPath, name: str) -> Path:
    """Where the outer optimiser's vector `name` lies in a version's folder."""
    return Path(folder) / f"outer-{name}.f32"


def aggregate(job: Aggregation, threads: int, memory_bytes_max: int = MEMORY_BYTES_MAX) -> AggregationResult:
    """Compute one round within `memory_bytes_max` of buffers, whatever the model and the cohort.

    Raises `BadUpdate` for a contribution that does not fit or a combined model that is not finite,
    `IntegrityError` for the coordinator's own files, `ConfigError` for unknown names,
    `StorageError` from the disk. Files already in `target` are then incomplete.
    """
    target = Path(job.target)
    for path in (job.exact_path, job.public_path, *(item.path for item in job.contributions)):
        if Path(path).resolve().parent == target.resolve():
            raise LocalError(f"aggregation would overwrite its own input {os.fspath(path)}")
    with contextlib.ExitStack() as stack:
        files = _RoundFiles(job, stack)
        optimiser = outer(job.outer_name)
        per_element = ELEMENT_BYTES * (_FLOAT_BUFFERS + len(optimiser.state)) + 2 * _OCTET_BYTES
        step = min(range_elements(per_element, memory_bytes_max, threads), job.block_elements)
        ranges = cut(job.layout.num_elements, job.block_elements, step)
        workers = [_RoundWorker(job, optimiser, files, step) for _ in range(min(threads, len(ranges)))]
        pass_through(ranges, workers)
        delta_digest, delta_bytes = files.delta.close()
        model_digest, _, public_bytes = files.public_out.close()
    return AggregationResult(
        delta_path=target / "delta.update",
        delta_digest=delta_digest,
        delta_bytes=delta_bytes,
        exact_path=target / "exact.f32",
        public_path=target / "public.safetensors",
        public_bytes=public_bytes,
        model_digest=model_digest,
        update_norm=norm_of(files.square_sums),
    )


def canonical_order(contributions: Sequence[Contribution]) -> list[Contribution]:
    """By site name, and of one site the freshest first: sums are taken in this order."""

    def key(item: Contribution) -> tuple[str, int, int]:
        _, round_index, attempt, _ = parse_order_id(item.order)
        return item.site, -round_index, -attempt

    return sorted(contributions, key=key)


class _RoundFiles:
    """Every file of a round, opened once, shared by the workers, closed by `stack`.

    Attributes:
        updates, weights: in canonical order.
        square_sums: of the combined pseudo-gradient, one per chunk.
    """

    def __init__(self, job: Aggregation, stack: contextlib.ExitStack) -> None:
        contributions = canonical_order(job.contributions)
        if not contributions:
            raise LocalError("a round without contributions cannot be aggregated")
        self.weights = normalised_weights(
            [item.weight for item in contributions], [item.norm for item in contributions], job.norm_max
        )
        self.updates = [stack.enter_context(UpdateReader(item.path)) for item in contributions]
        for item, update in zip(contributions, self.updates, strict=True):
            _check_contribution(job, item, update.header)
        self.public_in = stack.enter_context(ModelReader(job.public_path))
        _check_base(self.public_in, job.layout, job.run, job.version)
        size_bytes = ELEMENT_BYTES * job.layout.num_elements
        self.exact_in = _open_vector(job.exact_path, size_bytes, stack)
        optimiser = outer(job.outer_name)
        self.state_in = _open_state(job, optimiser, size_bytes, stack)

        target = Path(job.target)
        header = UpdateHeader(
            run=job.run,
            round=job.round_index,
            site="",
            direction="down",
            base_version=job.version,
            layout_digest=job.layout.digest,
            codec=job.codec_down,
            block_elements=job.block_elements,
            num_elements=job.layout.num_elements,
            clip_norm=None,
        )
        self.delta = UpdateWriter(target / "delta.update", header)
        stack.callback(self.delta.abandon)
        self.public_out = ModelWriter(target / "public.safetensors", job.layout, job.run, job.version + 1)
        stack.callback(self.public_out.abandon)
        self.exact_out = _create_vector(target / "exact.f32", size_bytes, stack)
        self.state_out = {
            name: _create_vector(state_file(target, name), size_bytes, stack) for name in optimiser.state
        }
        self.square_sums: NDArray[np.float64] = np.zeros(chunk_count(job.layout.num_elements))


class _RoundWorker:
    """One thread's buffers of `step` elements, and the arithmetic of a range."""

    def __init__(self, job: Aggregation, optimiser: OuterOptimiser, files: _RoundFiles, step: int) -> None:
        self._job = job
        self._files = files
        self._optimiser = optimiser
        self._params = optimiser.settings(job.outer_params)
        self._combine = aggregator(job.aggregator).combine
        self._codec = codec(job.codec_down)
        self._decoded, self._combined, self._exact, self._public = (
            np.empty(step, np.float32) for _ in range(_FLOAT_BUFFERS)
        )
        self._state = {name: np.empty(step, np.float32) for name in optimiser.state}
        self._octets = np.empty(_OCTET_BYTES * step, np.uint8)
        self._encoded = np.empty(self._codec.encoded_bytes(step), np.uint8)
        self._absorbable = self._encoded

    def compute(self, start: int, stop: int) -> None:
        """From the updates of a range to its new values on disk; digests are left to `absorb`."""
        files, count = self._files, stop - start
        combined, decoded = self._combined[:count], self._decoded[:count]
        exact, public = self._exact[:count], self._public[:count]
        self._combine(self._decoded_updates(start, decoded), files.weights, combined)
        sums = square_sums(combined)
        files.square_sums[start // CHUNK_ELEMENTS : start // CHUNK_ELEMENTS + len(sums)] = sums

        read_exactly(files.exact_in, exact, ELEMENT_BYTES * start)
        state = {name: self._read_state(name, start, count) for name in self._state}
        self._optimiser.step(exact, combined, state, self._params, decoded)
        write_exactly(files.exact_out, exact, ELEMENT_BYTES * start)
        for name, vector in state.items():
            write_exactly(files.state_out[name], vector, ELEMENT_BYTES * start)

        files.public_in.read(start, public)
        np.subtract(exact, public, out=combined)
        block, first = divmod(start, self._job.block_elements)
        seed = block_seed(self._job.run, self._job.seed, self._job.round_index, "", "down", block)
        self._absorbable = self._codec.encode(combined, seed, first, self._encoded)
        self._codec.decode(self._absorbable, decoded)
        np.add(public, decoded, out=public)
        files.delta.place(start, self._absorbable)
        files.public_out.place(start, public)

    def absorb(self, start: int, stop: int) -> None:
        self._files.delta.absorb(self._absorbable)
        self._files.public_out.absorb(self._public[: stop - start])

    def _decoded_updates(self, start: int, out: Floats) -> Iterator[Floats]:
        for update in self._files.updates:
            yield update.decode_range(start, out, self._octets)

    def _read_state(self, name: str, start: int, count: int) -> Floats:
        vector = self._state[name][:count]
        if name in self._files.state_in:
            read_exactly(self._files.state_in[name], vector, ELEMENT_BYTES * start)
        else:
            vector.fill(self._optimiser.initial(name, self._params))
        return vector


def apply_delta(
    public_in: StrPath,
    delta: StrPath,
    public_out: StrPath,
    layout: Layout,
    run: str,
    version: int,
    threads: int = 2,
) -> str:
    """Write version `version` of the public model from the one before and its delta.

    Returns the model digest, to be compared with the one that the coordinator named. Memory does
    not grow with the model. Raises `BadUpdate` for a delta or model that does not fit.
    """
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(ModelReader(public_in))
        _check_base(model, layout, run, version - 1)
        update = stack.enter_context(UpdateReader(delta))
        header = update.header
        check_facts(
            header,
            UpdateFacts(run, header.round, "", version - 1, layout.digest, header.codec, layout.num_elements),
        )
        writer = ModelWriter(public_out, layout, run, version)
        stack.callback(writer.abandon)
        ranges = cut(layout.num_elements, header.block_elements, RANGE_ELEMENTS_MAX)
        step = max(stop - start for start, stop in ranges)
        pass_through(ranges, [_DeltaWorker(model, update, writer, step) for _ in range(threads)])
        model_digest, _, _ = writer.close()
    return model_digest


class _DeltaWorker:
    """One thread's buffers for `apply_delta`."""

    def __init__(self, model: ModelReader, update: UpdateReader, writer: ModelWriter, step: int) -> None:
        self._model = model
        self._update = update
        self._writer = writer
        self._public = np.empty(step, np.float32)
        self._decoded = np.empty(step, np.float32)
        self._octets = np.empty(_OCTET_BYTES * step, np.uint8)

    def compute(self, start: int, stop: int) -> None:
        public, decoded = self._public[: stop - start], self._decoded[: stop - start]
        self._model.read(start, public)
        self._update.decode_range(start, decoded, self._octets)
        np.add(public, decoded, out=public)
        self._writer.place(start, public)

    def absorb(self, start: int, stop: int) -> None:
        self._writer.absorb(self._public[: stop - start])


def init_exact(public: StrPath, exact: StrPath) -> None:
    """Version 0 of the coordinator's exact model: the public model's values, as raw float32."""
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(ModelReader(public))
        target = _create_vector(exact, ELEMENT_BYTES * model.num_elements, stack)
        buffer = np.empty(min(RANGE_ELEMENTS_MAX, model.num_elements), np.float32)
        for start in range(0, model.num_elements, len(buffer)):
            values = buffer[: model.num_elements - start]
            model.read(start, values)
            write_exactly(target, values, ELEMENT_BYTES * start)


def _check_contribution(job: Aggregation, item: Contribution, header: UpdateHeader) -> None:
    """A late update may start from an older version; all else must be this run's and this site's."""
    expected = UpdateFacts(
        job.run,
        header.round,
        item.site,
        header.base_version,
        job.layout.digest,
        header.codec,
        job.layout.num_elements,
    )
    check_facts(header, expected)


def _check_base(model: ModelReader, layout: Layout, run: str, version: int) -> None:
    model.check_layout(layout)
    if (model.run, model.version) != (run, version):
        raise BadUpdate(
            f"model: version {model.version} of run {model.run[:80]!r}, expected {version} of {run!r}"
        )


def _open_vector(path: StrPath, size_bytes: int, stack: contextlib.ExitStack) -> int:
    descriptor, found_bytes = open_source(path)
    stack.callback(os.close, descriptor)
    if found_bytes != size_bytes:
        raise IntegrityError(
            f"{os.fspath(path)} has {found_bytes} bytes, the model needs {size_bytes}: restore it"
        )
    return descriptor


def _create_vector(path: StrPath, size_bytes: int, stack: contextlib.ExitStack) -> int:
    descriptor = create_target(path, size_bytes)
    stack.callback(os.close, descriptor)
    return descriptor


def _open_state(
    job: Aggregation, optimiser: OuterOptimiser, size_bytes: int, stack: contextlib.ExitStack
) -> dict[str, int]:
    """The optimiser's vectors of the base version: all of them, or none for a fresh start."""
    if job.state_dir_in is None:
        return {}
    paths = {name: state_file(job.state_dir_in, name) for name in optimiser.state}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if len(missing) == len(paths):
        return {}
    if missing:
        raise IntegrityError(
            f"{missing[0]} is missing beside the outer optimiser's other vectors: restore it"
        )
    return {name: _open_vector(path, size_bytes, stack) for name, path in paths.items()}
