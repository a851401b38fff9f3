"""A round's numbers: equal to plain arithmetic in memory, bit for bit, however it is computed."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from fedtrain.errors import BadUpdate, ConfigError, IntegrityError, LocalError
from fedtrain.methods.aggregation import (
    Aggregation,
    AggregationResult,
    Contribution,
    aggregate,
    apply_delta,
    canonical_order,
    init_exact,
)
from fedtrain.methods.aggregators import normalised_weights
from fedtrain.methods.codecs import CODECS, block_seed, codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.outer import OUTER, outer
from fedtrain.methods.updatefile import UpdateFacts, UpdateHeader, UpdateWriter, inspect

BLOCK = 16_384
LAYOUT = Layout((Entry("a", (250, 200)), Entry("head", (9,), scope="private"), Entry("b", (20_001,))))
COUNT = LAYOUT.num_elements
SITES = ("numeric", "network", "reference")


def values(seed: int, scale: float = 1.0) -> np.ndarray:
    """Some vector of the model's length."""
    return (np.random.default_rng(seed).standard_normal(COUNT) * scale).astype(np.float32)


class World:
    """A coordinator's folder: version 0 on disk, and updates on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        writer = ModelWriter(folder / "model-0", LAYOUT, "run-1", 0)
        writer.write(values(0))
        writer.close()
        init_exact(folder / "model-0", folder / "exact-0")

    def update(self, site: str, delta: np.ndarray, name: str = "int8", round_index: int = 0) -> Contribution:
        """A site's update file as a contribution; weight by the site's name."""
        path = self.folder / f"{site}-{round_index}-{name}"
        header = UpdateHeader(
            "run-1", round_index, site, "up", round_index, LAYOUT.digest, name, BLOCK, COUNT, None
        )
        writer = UpdateWriter(path, header)
        for block, start in enumerate(range(0, COUNT, BLOCK)):
            seed = block_seed("run-1", 7, round_index, site, "up", block)
            writer.write_block(codec(name).encode(delta[start : start + BLOCK], seed))
        writer.close()
        facts = UpdateFacts("run-1", round_index, site, round_index, LAYOUT.digest, name, COUNT)
        order = f"run-1.{round_index}.0.{site}"
        return Contribution(site, order, str(path), 100.0 + len(site), inspect(path, facts))

    def job(self, target: str, contributions: list[Contribution], **changes: object) -> Aggregation:
        """Round 0 with int8 both ways and Nesterov."""
        (self.folder / target).mkdir()
        job = Aggregation(
            run="run-1",
            seed=7,
            round_index=0,
            version=0,
            layout=LAYOUT,
            contributions=tuple(contributions),
            outer_name="nesterov",
            outer_params={},
            aggregator="mean",
            norm_max=None,
            codec_down="int8",
            block_elements=BLOCK,
            exact_path=self.folder / "exact-0",
            public_path=self.folder / "model-0",
            state_dir_in=None,
            target=self.folder / target,
        )
        return dataclasses.replace(job, **changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 0 in a folder."""
    return World(tmp_path)


def contents(result: AggregationResult) -> dict[str, str]:
    """Name -> SHA-256 of every file in the target folder."""
    folder = result.delta_path.parent
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def decoded(contribution: Contribution) -> np.ndarray:
    """A whole update in memory, decoded by the codec alone."""
    name = contribution.path.rsplit("-", 1)[1]
    size = codec(name).encoded_bytes(COUNT)
    out = np.empty(COUNT, np.float32)
    codec(name).decode(Path(contribution.path).read_bytes()[-size:], out)
    return out


def reference(job: Aggregation, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """(exact, public, norm of the mean) of the next version by whole-array arithmetic."""
    ordered = sorted(job.contributions, key=lambda item: item.site)
    weights = normalised_weights([c.weight for c in ordered], [c.norm for c in ordered], job.norm_max)
    mean = np.zeros(COUNT, np.float32)
    for item, weight in zip(ordered, weights, strict=True):
        mean = mean + decoded(item) * weight
    norm = float(np.linalg.norm(mean.astype(np.float64)))
    exact = np.fromfile(job.exact_path, "<f4")
    public = np.empty(COUNT, np.float32)
    with ModelReader(job.public_path) as reader:
        reader.read(0, public)
    params = outer(job.outer_name).settings(job.outer_params)
    outer(job.outer_name).step(exact, mean, state, params)
    for block, start in enumerate(range(0, COUNT, BLOCK)):
        part = slice(start, start + BLOCK)
        row = codec(job.codec_down)
        seed = block_seed(job.run, job.seed, job.round_index, "", "down", block)
        lossy = np.empty(len(public[part]), np.float32)
        row.decode(row.encode(exact[part] - public[part], seed), lossy)
        public[part] = public[part] + lossy
    return exact, public, norm


def fresh_state(name: str) -> dict[str, np.ndarray]:
    """An outer optimiser's vectors as a run begins with."""
    params = outer(name).settings({})
    return {key: np.full(COUNT, outer(name).initial(key, params), np.float32) for key in outer(name).state}


@pytest.mark.parametrize("outer_name", sorted(OUTER))
@pytest.mark.parametrize("codec_down", sorted(CODECS))
def test_out_of_core_equals_in_memory(world: World, outer_name: str, codec_down: str) -> None:
    """Exact model, public model, state and norm are those of whole-array arithmetic, over two rounds."""
    state = fresh_state(outer_name)
    first = [world.update(site, values(i + 1, 0.01)) for i, site in enumerate(SITES)]
    job = world.job("v1", first, outer_name=outer_name, codec_down=codec_down)
    result = aggregate(job, threads=2)
    check(job, result, state)
    second = [world.update(site, values(i + 9, 0.01), "bfloat16", 1) for i, site in enumerate(SITES)]
    job = world.job(
        "v2",
        second,
        outer_name=outer_name,
        codec_down=codec_down,
        round_index=1,
        version=1,
        exact_path=result.exact_path,
        public_path=result.public_path,
        state_dir_in=world.folder / "v1",
    )
    check(job, aggregate(job, threads=2), state)


def check(job: Aggregation, result: AggregationResult, state: dict[str, np.ndarray]) -> None:
    """Every number of `result` against the reference, which moves `state` on."""
    exact, public, norm = reference(job, state)
    np.testing.assert_array_equal(np.fromfile(result.exact_path, "<f4"), exact)
    with ModelReader(result.public_path) as reader:
        assert (reader.run, reader.version) == (job.run, job.version + 1)
        assert reader.verify(LAYOUT) == result.model_digest
        found = np.empty(COUNT, np.float32)
        reader.read(0, found)
    np.testing.assert_array_equal(found, public)
    assert result.update_norm == pytest.approx(norm, rel=1e-6)
    for key, vector in state.items():
        np.testing.assert_array_equal(
            np.fromfile(result.exact_path.parent / f"outer-{key}.f32", "<f4"), vector
        )
    data = result.delta_path.read_bytes()
    assert (result.delta_digest, result.delta_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert result.public_bytes == result.public_path.stat().st_size


def test_threads_arrival_and_memory_do_not_matter(world: World) -> None:
    """Every file is the same bit for bit whatever the order of arrival, threads and memory bound."""
    updates = [world.update(site, values(i + 1, 0.01)) for i, site in enumerate(SITES)]
    variants = [
        (updates, 1, 64 << 20),
        (updates[::-1], 1, 64 << 20),
        (updates[1:] + updates[:1], 3, 64 << 20),
        (updates, 4, 1),
        (updates, 2, 600_000),
    ]
    found = []
    norms = set()
    for index, (contributions, threads, memory) in enumerate(variants):
        result = aggregate(world.job(f"out{index}", contributions), threads, memory)
        found.append(contents(result))
        norms.add(result.update_norm)
    assert set(found[0]) == {"delta.update", "exact.f32", "public.safetensors", "outer-velocity.f32"}
    assert all(other == found[0] for other in found)
    assert len(norms) == 1


@pytest.mark.parametrize("codec_down", sorted(CODECS))
@pytest.mark.parametrize("threads", [1, 3])
def test_sites_reach_the_coordinators_digest(world: World, codec_down: str, threads: int) -> None:
    """A site that applies the delta to its public model holds the same file as the coordinator."""
    update = world.update("network", values(1, 0.01))
    result = aggregate(world.job("v1", [update], codec_down=codec_down), threads=1)
    target = world.folder / "site"
    digest = apply_delta(world.folder / "model-0", result.delta_path, target, LAYOUT, "run-1", 1, threads)
    assert digest == result.model_digest
    assert target.read_bytes() == result.public_path.read_bytes()


def test_apply_delta_refuses_what_does_not_fit(world: World) -> None:
    """Another version, run or layout, and a damaged delta, is refused."""
    result = aggregate(world.job("v1", [world.update("network", values(1))]), threads=1)
    model, delta, out = world.folder / "model-0", result.delta_path, world.folder / "site"
    other = Layout((Entry("a", (COUNT,)),))
    for source, layout, run, version in (
        (model, LAYOUT, "run-1", 2),
        (model, LAYOUT, "run-2", 1),
        (model, other, "run-1", 1),
        (result.public_path, LAYOUT, "run-1", 1),
        (result.public_path, LAYOUT, "run-1", 2),
    ):
        with pytest.raises(BadUpdate):
            apply_delta(source, delta, out, layout, run, version)
    data = bytearray(delta.read_bytes())
    data[-1] = 0x80
    delta.write_bytes(data)
    with pytest.raises(BadUpdate, match="-128"):
        apply_delta(model, delta, out, LAYOUT, "run-1", 1)


def test_norms_above_the_bound_are_clipped(world: World) -> None:
    """A site whose update is a thousand times too large moves the model by its share of the bound."""
    honest = world.update("network", values(1, 0.01), "float32")
    liar = world.update("numeric", values(2, 10), "float32")
    job = world.job("v1", [honest, liar], norm_max=honest.norm, outer_name="average", codec_down="float32")
    result = aggregate(job, threads=1)
    assert result.update_norm <= honest.norm
    check(job, result, {})


def test_downlink_error_feedback_telescopes(world: World) -> None:
    """Over many rounds exact minus public stays one codec error, and does not add up."""
    exact, public = world.folder / "exact-0", world.folder / "model-0"
    gaps = []
    for index in range(6):
        update = world.update("network", values(index + 1, 0.01), "float32", index)
        job = world.job(
            f"v{index + 1}",
            [update],
            outer_name="average",
            round_index=index,
            version=index,
            exact_path=exact,
            public_path=public,
        )
        result = aggregate(job, threads=1)
        exact, public = result.exact_path, result.public_path
        held = np.empty(COUNT, np.float32)
        with ModelReader(public) as reader:
            reader.read(0, held)
        gaps.append(float(np.max(np.abs(np.fromfile(exact, "<f4") - held))))
    # The exact model moves by up to 0.05 a round; one int8 step of that is 0.05 / 127.
    assert max(gaps) < 1.5 * 0.06 / 127


def test_late_updates_come_after_fresh_ones_of_their_site() -> None:
    """Canonical order is by site, then freshest round first."""
    orders = ["run-1.3.0.a", "run-1.4.0.b", "run-1.4.1.a", "run-1.2.0.b"]
    items = [Contribution(order[-1], order, "", 1, 1) for order in orders]
    assert [item.order for item in canonical_order(items)] == [
        "run-1.4.1.a",
        "run-1.3.0.a",
        "run-1.4.0.b",
        "run-1.2.0.b",
    ]


def test_a_late_update_counts_beside_the_fresh_one(world: World) -> None:
    """An update from an earlier round of the run is accepted as a contribution."""
    late, fresh = (
        world.update("network", values(1, 0.01)),
        world.update("network", values(2, 0.01), "int8", 1),
    )
    job = world.job("v1", [late, fresh], round_index=1)
    assert aggregate(job, threads=1).update_norm < late.norm + fresh.norm


def test_what_does_not_fit_is_refused(world: World) -> None:
    """No contribution, another site's file, unknown names, and damaged own files are told apart."""
    update = world.update("network", values(1))
    foreign = dataclasses.replace(update, site="numeric", order="run-1.0.0.numeric")
    with pytest.raises(LocalError):
        aggregate(world.job("a", []), 1)
    with pytest.raises(BadUpdate, match="site"):
        aggregate(world.job("b", [foreign]), 1)
    with pytest.raises(BadUpdate, match="version"):
        aggregate(world.job("c", [update], version=1), 1)
    for index, change in enumerate(({"outer_name": "x"}, {"codec_down": "x"}, {"aggregator": "x"})):
        with pytest.raises(ConfigError):
            aggregate(world.job(f"d{index}", [update], **change), 1)
    (world.folder / "short").write_bytes(b"1234")
    with pytest.raises(IntegrityError, match="restore"):
        aggregate(world.job("e", [update], exact_path=world.folder / "short"), 1)
    with pytest.raises(LocalError, match="overwrite"):
        aggregate(dataclasses.replace(world.job("f", [update]), target=world.folder), 1)


def test_a_state_vector_that_is_missing_is_not_made_up(world: World) -> None:
    """All vectors of the outer optimiser absent is a fresh start; some absent is damage."""
    update = world.update("network", values(1))
    job = world.job("v1", [update], outer_name="adam")
    aggregate(job, 1)
    (world.folder / "v1" / "outer-mean.f32").unlink()
    with pytest.raises(IntegrityError, match="outer-mean"):
        aggregate(world.job("v2", [update], outer_name="adam", state_dir_in=world.folder / "v1"), 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_update_ends_the_aggregation(world: World, threads: int) -> None:
    """A bad byte in the last block comes out as `BadUpdate`, with or without threads."""
    update = world.update("network", values(1))
    data = bytearray(Path(update.path).read_bytes())
    data[-1] = 0x80
    Path(update.path).write_bytes(data)
    with pytest.raises(BadUpdate, match="network, block 4"):
        aggregate(world.job("v1", [update]), threads)
