"""Splits and windows: nothing that is measured on is ever trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import ConfigError
from fedtrain.trainer.tasks.corpus import BLOCK_BYTES, HELD_OUT_EVERY, Corpus

CYCLE = BLOCK_BYTES * HELD_OUT_EVERY


def marked_text(size: int, part: int = 0) -> bytes:
    """Text in which every byte says whether it is in a held-out block (1, else 0), plus 2 per part."""
    held_out = np.arange(size) % CYCLE >= CYCLE - BLOCK_BYTES
    return (held_out + 2 * part).astype(np.uint8).tobytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(CYCLE, 4 * CYCLE), st.integers(1, 300), st.integers(0, 2**32))
def test_training_and_held_out_windows_never_touch(size, context, step):
    """Every byte of a training window lies outside the held-out blocks, every other one inside."""
    corpus = Corpus([[marked_text(size)]], context)
    assert not corpus.batch(f"run {step}", 64).any()
    assert corpus.held_out(1000).all()
    assert corpus.train_bytes + corpus.held_out_bytes == size


def test_each_part_keeps_its_own_split():
    """Joined sites are split one by one, so central training never sees what a site holds out."""
    first, second = marked_text(CYCLE + 5000), marked_text(2 * CYCLE, part=1)
    corpus = Corpus([[first], [second]], 32)
    drawn = corpus.batch("run", 2000)
    assert set(np.unique(drawn)) == {0, 2}
    assert set(np.unique(corpus.held_out(1000))) == {1, 3}


def test_the_ends_of_a_training_stretch_are_drawn_too():
    """The first byte and the last byte of both stretches come up in windows sooner or later."""
    text = np.zeros(2 * CYCLE, np.uint8)
    first, last = [0, CYCLE], [CYCLE - BLOCK_BYTES - 1, 2 * CYCLE - BLOCK_BYTES - 1]
    text[first], text[last] = (1, 2), (3, 4)
    drawn = Corpus([[text.tobytes()]], 1).batch("run", 700_000)
    assert set(np.unique(drawn[:, 0])) == {0, 1, 2}
    assert set(np.unique(drawn[:, 1])) == {0, 3, 4}


def test_batches_follow_from_their_material_alone():
    """Equal material gives equal windows whatever was drawn before; other material gives others."""
    chance = np.random.default_rng(3)
    text = chance.integers(0, 256, 3 * CYCLE, np.uint8).tobytes()
    first, second = Corpus([[text]], 16), Corpus([[text[:100], text[101:]]], 16)
    expected = first.batch("run 1 site 7", 8)
    first.batch("run 1 site 8", 8)
    np.testing.assert_array_equal(first.batch("run 1 site 7", 8), expected)
    assert not np.array_equal(first.batch("run 1 site 8", 8), expected)
    assert second.batch("run 1 site 7", 8).shape == (8, 17)


def test_held_out_windows_are_bounded_and_predict_each_byte_once():
    """At most so many windows, spread over the text, and no predicted byte is counted twice."""
    text = np.arange(3 * CYCLE // 4, dtype="<u4").tobytes()
    corpus = Corpus([[text]], 64)
    everything = corpus.held_out(10_000)
    assert len(everything) == 3 * ((BLOCK_BYTES - 1) // 64)
    few = corpus.held_out(10)
    assert len(few) == 10
    kept = {window.tobytes() for window in everything}
    assert all(window.tobytes() in kept for window in few)


def test_too_little_text_is_said():
    """A text without a training window or without a held-out one is refused with its size."""
    with pytest.raises(ConfigError, match="has 30000 bytes"):
        Corpus([[b"x" * 30_000]], 64)
