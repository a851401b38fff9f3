"""The torch encoders write numpy's bytes."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadUpdate, ConfigError
from fedtrain.methods.codecs import CODECS, block_seed, codec

torch = pytest.importorskip("torch")
encoders = pytest.importorskip("fedtrain.trainer.encoders")
torch.set_num_threads(1)


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_torch_and_numpy_write_the_same_bytes(name: str, data: st.DataObject) -> None:
    """Equal bytes for zeros, denormals, huge values, and lengths that are no multiple of a chunk."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count = data.draw(st.sampled_from([1, 3, 4095, 4096, 4097, 20_000, 65_536]))
    low = data.draw(st.sampled_from([-46, -31, -5, 0, 36]))
    values = rng.standard_normal(count) * 10.0 ** rng.uniform(
        low, low + data.draw(st.sampled_from([0, 1, 40])), count
    )
    values = np.clip(values, -(2.0**126), 2.0**126).astype(np.float32)
    values[rng.random(count) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    seed = block_seed("run", data.draw(st.integers(0, 2**60)), 1, "site", "up", 0)
    expected = codec(name).encode(values, seed).tobytes()
    assert encoders.encode_on_device(name, torch.from_numpy(values), seed) == expected
    assert encoders.encode(name, torch.from_numpy(values), seed) == expected


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_torch_refuses_what_numpy_refuses(name: str, bad: float) -> None:
    """NaN, infinity and what could round to it is refused."""
    values = torch.ones(10)
    values[3] = bad
    for encode in (encoders.encode, encoders.encode_on_device):
        with pytest.raises(BadUpdate, match="not finite"):
            encode(name, values, bytes(32))


def test_unknown_codecs_are_config_errors() -> None:
    """A codec that nobody knows is refused in words."""
    with pytest.raises(ConfigError):
        encoders.encode_on_device("int9", torch.ones(1), bytes(32))
