"""The public model at the site: the cheapest route, resumable, checked, and nothing but the newest kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from peer_world import RUN, FakeCoordinator, Versions, model_digest

from fedtrain.core.orders import ModelRef
from fedtrain.errors import BadOrder, IntegrityError, UnreachableError
from fedtrain.peer.models import PublicModels, choose_route


@st.composite
def refs(draw: st.DrawFn) -> ModelRef:
    """A chain as the coordinator makes it: a snapshot, then deltas that may begin before it."""
    version = draw(st.integers(0, 12))
    snapshot = draw(st.integers(0, version))
    oldest = draw(st.integers(0, snapshot))
    sizes = st.integers(1, 1000)
    deltas = tuple((v, f"{v:064x}", draw(sizes)) for v in range(oldest + 1, version + 1))
    chain = ((snapshot, "f" * 64, draw(sizes) * 4), *deltas)
    return ModelRef(version, "a" * 64, "b" * 64, snapshot, chain)


@given(ref=refs(), held=st.sets(st.integers(0, 15)))
def test_a_route_leads_from_its_base_to_the_version(ref: ModelRef, held: set[int]) -> None:
    """It begins at a held version or at the snapshot, and names every delta behind it, once, in order."""
    route = choose_route(ref, held)
    assert [link[0] for link in route.deltas] == list(range(route.base + 1, ref.version + 1))
    assert set(route.deltas) <= set(ref.chain)
    if route.snapshot is None:
        assert route.base in held
    else:
        assert route.snapshot == ref.chain[0] and route.base == ref.snapshot_version


@given(ref=refs(), held=st.sets(st.integers(0, 15)))
def test_no_other_route_is_cheaper(ref: ModelRef, held: set[int]) -> None:
    """Its bytes are the fewest of all; what is held already costs nothing."""
    bytes_of = {link[0]: link[2] for link in ref.chain[1:]}
    costs = [ref.chain[0][2] + sum(bytes_of[v] for v in range(ref.snapshot_version + 1, ref.version + 1))]
    for base in held:
        steps = range(base + 1, ref.version + 1)
        if base <= ref.version and all(v in bytes_of for v in steps):
            costs.append(sum(bytes_of[v] for v in steps))
    assert choose_route(ref, held).size_bytes == min(costs)


def test_a_chain_that_leads_nowhere_is_refused() -> None:
    """An order whose deltas have a gap is not guessed at."""
    ref = ModelRef(4, "a" * 64, "b" * 64, 1, ((1, "f" * 64, 9), (2, "2" * 64, 1), (4, "4" * 64, 1)))
    with pytest.raises(BadOrder):
        choose_route(ref, {0})
    assert choose_route(ref, {3}).base == 3
    with pytest.raises(BadOrder):
        choose_route(replace(ref, chain=()), set())


@pytest.fixture
async def models(tmp_path: Path, coordinator: FakeCoordinator) -> PublicModels:
    return PublicModels(tmp_path / "models", coordinator)


async def test_deltas_lead_to_the_coordinators_bits(
    models: PublicModels, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Each version equals the coordinator's, and costs one delta when the one before is held."""
    for version in range(3):
        async with models.at(RUN, versions.ref(version)) as path:
            assert path.read_bytes() == versions.files[version]
    assert len(coordinator.fetched) == 3
    assert models.fetched_bytes == sum(len(data) for data in versions.blobs.values())


async def test_only_the_newest_version_stays(
    models: PublicModels, versions: Versions, tmp_path: Path
) -> None:
    """An older version serves an older order for as long as it is asked for, and goes again."""
    async with models.at(RUN, versions.ref(2)):
        pass
    async with models.at(RUN, versions.ref(1)) as path:
        assert model_digest(path) == versions.digests[1]
    assert [path.name for path in (tmp_path / "models" / RUN).glob("*.safetensors")] == ["2.safetensors"]


async def test_a_download_goes_on_where_it_broke(
    tmp_path: Path, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """The bytes of a broken download count, also for an agent that was started anew."""
    coordinator.cut_fetch_at = 500
    with pytest.raises(UnreachableError):
        async with PublicModels(tmp_path / "models", coordinator).at(RUN, versions.ref(0)):
            pass
    async with PublicModels(tmp_path / "models", coordinator).at(RUN, versions.ref(0)) as path:
        assert model_digest(path) == versions.digests[0]
    assert [offset for _, offset in coordinator.fetched] == [0, 500]


async def test_a_spoilt_file_is_fetched_anew(
    tmp_path: Path, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A held model that is not what it was (a power loss, another hand) is found and replaced."""
    async with PublicModels(tmp_path / "models", coordinator).at(RUN, versions.ref(1)) as path:
        pass
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for version in (1, 2):
        async with PublicModels(tmp_path / "models", coordinator).at(RUN, versions.ref(version)) as path:
            assert model_digest(path) == versions.digests[version]


async def test_a_model_that_is_never_right_is_given_up(
    models: PublicModels, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A version whose digest is not the order's, even fetched anew, is an integrity error."""
    ref = replace(versions.ref(2), digest="ab" * 32)
    with pytest.raises(IntegrityError, match="fetched anew"):
        async with models.at(RUN, ref):
            pass
    snapshot = ref.chain[0][1]
    assert [digest for digest, _ in coordinator.fetched].count(snapshot) == 2
    async with models.at(RUN, versions.ref(2)) as path:
        assert model_digest(path) == versions.digests[2]


async def test_a_blob_with_other_bytes_is_not_used(
    models: PublicModels, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Bytes that do not have the digest that was asked for never become a model."""
    ref = versions.ref(0)
    digest = ref.chain[0][1]
    coordinator.blobs[digest] = coordinator.blobs[digest][:-1] + b"?"
    with pytest.raises(IntegrityError):
        async with models.at(RUN, ref):
            pass


async def test_another_layout_is_not_taken(models: PublicModels, versions: Versions) -> None:
    """A model whose tensors are not those of the order's layout is refused."""
    with pytest.raises(IntegrityError, match="layout"):
        async with models.at(RUN, replace(versions.ref(0), layout_digest="cd" * 32)):
            pass
