"""Golden numbers of quorums, by hand."""

import pytest
from hypothesis import given, strategies as st

from fedtrain.core.quorum import share, shortfall

SITES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("present", "weights", "expected"),
    [
        ("ab", {}, 0.5),  # nothing is known: by count
        ("ab", {"a": 10, "b": 20, "c": 30, "d": 40}, 0.3),
        ("d", {"a": 10, "b": 20, "c": 30, "d": 40}, 0.4),
        ("ac", {"a": 10, "b": 30}, 0.375),  # c and d count as 20, the mean: 30 of 80
        ("", {"a": 1}, 0.0),
        ("abcd", {"a": 1}, 1.0),
        ("ab", {"a": 0, "b": 0, "c": 0, "d": 0}, 0.0),
    ],
)
def test_share(present: str, weights: dict[str, int], expected: float) -> None:
    """The share of the invited data, unknown sites taken to be as large as the mean of the known."""
    assert share(tuple(present), SITES, weights) == pytest.approx(expected)


def test_shortfall_in_words() -> None:
    """A missing quorum is said with its numbers; a met one is silent."""
    weights = {"a": 10, "b": 20, "c": 30, "d": 40}
    assert shortfall(("a",), SITES, weights, 2, 0.0) == "1 of 4 contributed, quorum is 2"
    assert (
        shortfall(("a", "b"), SITES, weights, 2, 0.5)
        == "contributors hold 30% of the invited data, quorum_share is 50%"
    )
    assert shortfall(("a", "d"), SITES, weights, 2, 0.5) == ""


@given(weights=st.dictionaries(st.sampled_from(SITES), st.integers(1, 1 << 53)))
def test_everybody_is_always_enough(weights: dict[str, int]) -> None:
    """When all invited sites have contributed, a share of 1 is met in spite of rounding."""
    assert shortfall(SITES, SITES, weights, 4, 1.0) == ""
