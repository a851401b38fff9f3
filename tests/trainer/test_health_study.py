"""The accuracy study trains on what the example's sites have, and counts as it says."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks import health
from fedtrain.trainer.data import DataSource, read_datasets

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_split_is_the_one_of_the_example_s_sites():
    """Seed 1 gives each site the documents that its peer.yaml names; other seeds split otherwise."""
    split = health.split(1)
    for number, documents in enumerate(split, start=1):
        datasets = read_datasets(ROOT / "peers" / "health" / f"clinic-{number}" / "peer.yaml")
        assert list(DataSource("tumours", "classifier", datasets).documents()) == documents
    other = health.split(2)
    assert other != split
    # Each record is at one site, whichever the split.
    assert sorted(itertools.chain(*other)) == sorted(itertools.chain(*split))


def test_a_cell_without_privacy_can_be_repeated_and_learns():
    """Plain federated training on a split ends at the same accuracy each time, far above the larger class."""
    accuracies = [health.Cell(101, 0.0).accuracies(health.FEDERATED, 0.5) for _ in range(2)]
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][0] > 0.9


def test_rows_tell_the_worst_site_of_each_seed():
    """Local columns are means over seeds of the mean and of the worst site; ranges are over seeds."""
    local = [[0.5, 1.0], [0.25, 0.75]]
    results = {
        1.0: {
            health.FEDERATED: [[0.9], [0.8]],
            health.CENTRAL: [[1.0], [1.0]],
            health.LOCAL: local,
        }
    }
    assert list(health.rows(results)) == [
        ("1", "85.0 (80.0-90.0)", "100.0 (100.0-100.0)", "62.5 (50.0-75.0)", "37.5 (25.0-50.0)")
    ]
