"""Weights and the mean, by hand."""

import numpy as np
import pytest

from fedtrain.errors import BadUpdate, ConfigError
from fedtrain.methods.aggregators import aggregator, normalised_weights


def combine(blocks: list[list[float]], weights: list[float]) -> list[float]:
    """The mean of small blocks."""
    out = np.full(len(blocks[0]), np.nan, np.float32)
    arrays = (np.array(block, np.float32) for block in blocks)
    aggregator("mean").combine(arrays, [np.float32(weight) for weight in weights], out)
    return out.tolist()


def test_mean_by_hand() -> None:
    """A quarter of the one and three quarters of the other."""
    assert combine([[4, 8], [0, -4]], [0.25, 0.75]) == [1, -1]
    assert combine([[4, 8]], [1]) == [4, 8]


def test_blocks_may_share_one_buffer() -> None:
    """Blocks are asked for one at a time, so all may be decoded into the same memory."""
    buffer, out = np.empty(2, np.float32), np.empty(2, np.float32)

    def blocks():
        for value in (1.0, 2.0, 3.0):
            buffer.fill(value)
            yield buffer

    aggregator("mean").combine(blocks(), [np.float32(1)] * 3, out)
    assert out.tolist() == [6, 6]


def test_weights_are_shares() -> None:
    """Tokens become shares that sum to one."""
    assert normalised_weights([100, 300], [1, 1], None) == [np.float32(0.25), np.float32(0.75)]


def test_norms_above_the_bound_are_scaled_down() -> None:
    """An update twice the bound counts half; one at the bound counts whole."""
    assert normalised_weights([1, 1], [4, 2], 2) == [np.float32(0.25), np.float32(0.5)]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight: float) -> None:
    """Weights that are not positive numbers, and norms that are not finite, are refused."""
    with pytest.raises(BadUpdate):
        normalised_weights([1, weight], [1, 1], None)
    with pytest.raises(BadUpdate):
        normalised_weights([1, 1], [1, float("inf")], None)


def test_unknown_names_propose_the_nearest() -> None:
    """The error names what is valid."""
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        aggregator("meen")
