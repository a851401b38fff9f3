"""Noise, its grid, and the draws: where they come from, and how they are spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedtrain.errors import ConfigError, LocalError
from fedtrain.trainer.privacy import noise
from fedtrain.trainer.privacy.conditions import MISS, mean_square_band, plausible_count
from fedtrain.trainer.privacy.noise import KeyStream
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Units, poisson_draw

KEY = bytes(range(32))


def test_a_stream_is_aes_256_in_counter_mode():
    """The first words are the cipher of the counters 0 and 1, and go on where they ended."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    expected = block.update(bytes(16)) + block.update(bytes(15) + b"\1")
    stream = KeyStream(KEY)
    found = torch.cat([stream.words(1), stream.words(3)])
    assert found.numpy().astype("<i8").tobytes() == expected


def test_normal_values_are_normal():
    """Moments and distribution of a million values from a fixed key are those of the normal law."""
    values = KeyStream(KEY).normals(1_000_001)
    count = len(values)
    assert abs(float(values.mean())) < 6 / math.sqrt(count)
    assert abs(float((values**2).mean()) - 1) < 6 * math.sqrt(2 / count)
    assert abs(float((values**4).mean()) - 3) < 6 * math.sqrt(96 / count)
    # Kolmogorov's distance: a right sample of this size is further away once in 10^10.
    ordered = torch.sort(values).values
    expected = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    place = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float((expected - place).abs().max()) < math.sqrt(math.log(2e10) / 2 / count)


def test_noise_lies_on_the_grid_and_has_its_deviation():
    """Grid noise is whole numbers of a power of two, with the planned standard deviation."""
    deviation = 0.37
    grid = noise.grid_of(deviation)
    assert math.frexp(grid)[0] == 0.5 and 2.0**-41 < grid / deviation <= 2.0**-40
    values = noise.grid_noise(KeyStream(KEY), 100_000, deviation, grid)
    assert torch.equal(values, values.round())
    assert float(values.std()) * grid == pytest.approx(deviation, rel=0.02)


def test_what_is_released_shows_no_low_order_bits_of_the_sum():
    """The same noise on two sums within half a grid step gives the same release, on others another."""
    grid = noise.grid_of(1.0)
    added = noise.grid_noise(KeyStream(KEY), 3, 1.0, grid)
    base = torch.tensor([10.0, -3.0, 0.0], dtype=torch.float64) * grid
    near = noise.on_grid(base + 0.4 * grid, grid) + added
    assert torch.equal(near, noise.on_grid(base.clone(), grid) + added)
    assert not torch.equal(noise.on_grid(base + 0.6 * grid, grid) + added, near)


def test_the_noise_covers_clip_tolerance_and_rounding():
    """The sensitivity is the clip, 10^-4 of it, and one grid step in each of the elements."""
    found = noise.sensitivity(2.0, 0.5, 10_000)
    assert found == pytest.approx(2.0 * (1 + 1e-4) + 100 * noise.grid_of(1.0), rel=1e-12)
    assert noise.sensitivity(2.0, 0.5, 10**9) / 2.0 < 1 + 2e-4


def test_draws_are_independent_and_have_their_rate():
    """Over 2000 draws of 50 units each unit comes at its rate, sizes scatter like a binomial, and pairs
    come together as often as independence says (fixed key; bounds of 6 standard deviations)."""
    stream, rate = KeyStream(KEY), 0.3
    drawn = np.zeros((2000, 50))
    for row in drawn:
        row[poisson_draw(stream, 50, rate)] = 1
    assert np.abs(drawn.mean(axis=0) - rate).max() < 6 * math.sqrt(rate * (1 - rate) / 2000)
    variance = drawn.sum(axis=1).var()
    assert variance == pytest.approx(50 * rate * (1 - rate), rel=6 * math.sqrt(2 / 2000))
    together = (drawn.T @ drawn / 2000)[~np.eye(50, dtype=bool)]
    assert np.abs(together - rate**2).max() < 7 * math.sqrt(rate**2 / 2000)


def test_draws_of_every_unit_and_of_none():
    """At rate 1 all units are drawn; at a low rate an empty draw is a draw like any other."""
    assert poisson_draw(KeyStream(KEY), 7, 1.0).tolist() == list(range(7))
    assert poisson_draw(KeyStream(KEY), 7, 1e-9).tolist() == []
    with pytest.raises(LocalError):
        poisson_draw(KeyStream(KEY), 7, 0.0)


def test_groups_are_units_with_all_their_records():
    """The records of drawn groups come group by group, each with its group's place in the draw."""
    units = Units.of_groups(np.array([7, 3, 7, 5, 3, 7]))
    assert units.count == 3
    records, place = units.records(np.array([0, 2]))  # groups 3 and 7
    assert records.tolist() == [1, 4, 0, 2, 5] and place.tolist() == [0, 0, 1, 1, 1]
    empty, _ = units.records(np.array([], np.int64))
    assert empty.size == 0


def test_bounds_on_chance_hold_and_are_tight():
    """The band of mean squares and the bound on sizes exclude 10^-12 or less, but not much less."""
    for count in (1, 2, 5, 100, 10_000):
        low, high = mean_square_band(count)
        for ratio in (low, high):
            assert count / 2 * (math.log(ratio) + 1 - ratio) == pytest.approx(-MISS, rel=1e-6)
        assert low < 1 < high
    assert mean_square_band(10_000)[0] > 0.85 and mean_square_band(300)[0] > 0.25
    assert plausible_count(100, 1000, 0.1) and plausible_count(0, 1000, 0.01)
    assert not plausible_count(0, 1000, 0.1) and not plausible_count(200, 1000, 0.1)
    assert plausible_count(5, 5, 1.0) and not plausible_count(4, 5, 1.0)


def test_fewer_units_than_were_charged_for_are_refused():
    """A data set that has shrunk since the charge would have a larger rate than the one paid for."""
    plan = RecordPlan(1.0, 1.0, 0.1, units=100)
    plan.check_units(100)
    with pytest.raises(ConfigError, match=r"99 units .* reckoned with 100"):
        plan.check_units(99)
    with pytest.raises(ConfigError, match="holds no record"):
        RecordPlan(1.0, 1.0, 0.1).check_units(0)
