"""Orders that promise privacy: permits, what leaves, and what is carried on."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from fedtrain.core.charges import bit_mechanism, record_mechanism, site_mechanism
from fedtrain.methods.summable import summable
from fedtrain.methods.updatefile import UpdateReader
from fedtrain.storage.mailbox import Order, Permit, Result, read_asked
from fedtrain.trainer.privacy import distributed, site as site_noise
from fedtrain.trainer.progress import OrderProgress

RECORD = {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "steps_total": 100, "sampling_rate": 0.01}
SITE = {"clip": 0.5, "noise_multiplier": 0.6, "delta": 1e-5, "rounds_total": 3}
DISTRIBUTED = {
    "site": {**SITE, "noise": "distributed", "dropouts_max": 1},
    "masked": {"dropouts_max": 1},
}
COHORT = ("a", "b", "c", "d", "here")


def permit_for(order: Order, units: int = 0) -> Permit:
    """What an honest agent lays beside the order."""
    asked = read_asked(order.task)
    assert not asked.fault
    return Permit(
        order.id,
        1,
        record=record_mechanism(asked.record, 0.01, 0.8, order.steps) if asked.record else None,
        site=site_mechanism(asked.site, len(order.cohort)) if asked.site else None,
        units=units,
        bit=bit_mechanism(asked.site) if asked.site else None,
    )


class Private:
    """A site whose orders promise privacy."""

    def __init__(self, site, task) -> None:
        self.site = site
        self.task = task

    def order(self, round_index: int, privacy, **changes) -> Order:
        """With the promise in its task; the model is made when it is first needed."""
        task = {**self.task, "terms": {"privacy": privacy}} if privacy else self.task
        if not hasattr(self, "model"):
            self.model, self.ref = self.site.first_model(task)
        return self.site.order("train", round_index, model=self.ref, task=task, cohort=COHORT, **changes)

    def do(self, order: Order, permit: Permit | None) -> Result:
        """As `Site.do`, with a permit."""
        mailbox = self.site.mailbox
        mailbox.post(order, self.model, permit)
        claim = mailbox.claim("test-trainer")
        assert claim is not None
        progress = OrderProgress(mailbox, order.id, order.steps, threading.Event())
        result, file = self.site.session.work(claim, progress)
        assert mailbox.publish(result, file)
        return mailbox.take_result(order.id)[0]


@pytest.fixture
def private(site, language_task):
    """A site with the small language model."""
    return Private(site, language_task)


@pytest.fixture
def synthetic(site, synthetic_task):
    """A site with the synthetic task: the pseudo-gradient is known, and its norm is about 1."""
    return Private(site, synthetic_task)


def plain_update(private: Private, round_index: int = 1) -> np.ndarray:
    """What leaves without any promise."""
    order = private.order(round_index, None, codec="float32", attempt=9)
    assert private.do(order, None).failure == ""
    found = private.site.update(order)
    private.site.mailbox.discard(order.id)
    return found


def test_a_permitted_order_is_trained_privately(private):
    """With the right permit an update is noised anew each time, without a loss, of the expected weight."""
    order = private.order(1, {"record": RECORD})
    digests = set()
    for attempt in (1, 2):
        again = replace(order, id=f"tiny-run.1.{attempt}.here", attempt=attempt)
        result = private.do(again, permit_for(again))
        assert result.failure == "" and result.steps == 6 and result.train_loss is None
        digests.add(result.digest)
    assert len(digests) == 2
    # Windows of 17 bytes at a rate of 0.01, of which 16 are predicted each.
    records = private.site.session._task.units("record")
    assert result.weight == 6 * round(0.01 * records * 16)


def test_the_same_order_again_hands_in_the_stored_bytes(private):
    """A private order that was done is not done again, and needs no second permit."""
    order = private.order(1, {"record": RECORD})
    first = private.do(order, permit_for(order))
    private.site.mailbox.discard(order.id)
    private.site.restart()
    assert private.do(order, None).digest == first.digest


@pytest.mark.parametrize("privacy", [{"record": RECORD}, {"site": SITE}], ids=["record", "site"])
def test_an_order_without_its_permit_is_refused(private, privacy):
    """No permit, and one with other numbers: nothing is trained."""
    order = private.order(1, privacy)
    right = permit_for(order)
    wrong = [None]
    for part in ("record", "site"):
        mechanism = getattr(right, part)
        if mechanism is not None:
            wrong.append(replace(right, **{part: replace(mechanism, clip=2 * mechanism.clip)}))
            wrong.append(replace(right, **{part: replace(mechanism, steps=mechanism.steps + 1)}))
            wrong.append(replace(right, **{part: None}))
    for permit in wrong:
        result = private.do(order, permit)
        assert "permit" in result.failure and "tiny-run.1.1.here is not worked on" in result.failure
        private.site.mailbox.discard(order.id)
    assert not list(private.site.mailbox.checkpoints.glob("tiny-run/tiny-run.1*"))


def test_a_data_set_that_shrank_since_the_charge_is_refused(private):
    """With fewer units than the rate was reckoned with the order fails, in words."""
    order = private.order(1, {"record": RECORD})
    result = private.do(order, permit_for(order, units=10**6))
    assert "the permit was reckoned with 1000000" in result.failure


def test_a_task_without_units_refuses_privacy_of_records(synthetic):
    """A task that cannot train privately says so, whatever the permit."""
    order = synthetic.order(1, {"record": RECORD})
    assert "has no `units`" in synthetic.do(order, permit_for(order)).failure


def test_groups_are_documents(private):
    """With the unit `group` the language model's units are the site's two texts."""
    order = private.order(1, {"record": {**RECORD, "unit": "group", "sampling_rate": 1.0}}, steps=1)
    permit = permit_for(order, units=2)
    permit = replace(permit, record=replace(permit.record, sampling_rate=1.0))
    assert private.do(order, permit).failure == ""
    assert private.site.session._task.units("group") == 2


def test_a_sites_update_is_clipped_and_noised(synthetic):
    """What leaves less the clipped pseudo-gradient scatters as planned, in every part of the vector."""
    plain = plain_update(synthetic)
    order = synthetic.order(1, {"site": SITE}, codec="float32")
    assert synthetic.do(order, permit_for(order)).failure == ""
    norm = float(np.linalg.norm(plain))
    assert norm > SITE["clip"]
    noise = synthetic.site.update(order) - plain * (SITE["clip"] / norm)
    for part in np.array_split(noise, 10):
        # 1000 values: the deviation is off by a sixth less than once in 10^12.
        assert np.std(part) == pytest.approx(0.3, rel=1 / 6)


def test_the_residual_holds_only_what_the_codec_lost_of_noised_values(synthetic):
    """Over two rounds with int8 the sent updates and the residual add up to the noised ones, and the residual
    is no larger than the codec's error."""
    from safetensors.numpy import load_file

    parent, sent = "", np.zeros(10_000)
    for round_index in (1, 2):
        order = synthetic.order(round_index, {"site": SITE}, parent=parent)
        assert synthetic.do(order, permit_for(order)).notes == ()
        sent += synthetic.site.update(order)
        parent = order.id
    path = synthetic.site.mailbox.checkpoints / "tiny-run" / parent / "residual.safetensors"
    residual = load_file(path)["residual"]
    # Noise of 0.3: a chunk's largest value is below 2, so a step of int8 below 2 / 127.
    assert np.abs(residual).max() < 2 / 127
    assert np.std(sent + residual) == pytest.approx(0.3 * math.sqrt(2), rel=0.1)


def test_nothing_that_was_made_without_the_promise_is_carried_on(synthetic):
    """A parent of a run without privacy, and its update to be returned, stay behind, with a note for each."""
    parent = synthetic.order(1, None)
    synthetic.do(parent, None)
    order = synthetic.order(2, {"site": SITE}, parent=parent.id, returned=(parent.id,))
    result = synthetic.do(order, permit_for(order))
    assert result.failure == "" and len(result.notes) == 2
    assert "another promise of privacy" in result.notes[0]


def test_the_bit_of_adaptive_clipping_is_noised(synthetic):
    """With adaptive clipping the result says, with noise, whether the norm was within the clip."""
    adaptive = {"quantile": 0.5, "rate": 0.2, "noise": 0.001}
    for clip, bit in ((0.5, 0.0), (5.0, 1.0)):
        order = synthetic.order(
            1, {"site": {**SITE, "clip": clip, "adaptive": adaptive}}, attempt=int(clip) + 1
        )
        found = synthetic.do(order, permit_for(order)).within
        assert found != bit and found == pytest.approx(bit, abs=0.009)


def test_distributed_noise_is_whole_levels_without_a_residual(synthetic):
    """Levels are the clipped update plus this site's share of the noise, and nothing is kept for later."""
    plain = plain_update(synthetic)
    codec = "fixed20s16"
    order = synthetic.order(1, DISTRIBUTED, codec=codec)
    assert synthetic.do(order, permit_for(order)).failure == ""
    row = summable(codec)
    found = synthetic.site.update(order).astype(np.float64) / row.step
    assert np.array_equal(found, np.rint(found))
    clipped = plain.astype(np.float64) * (SITE["clip"] / np.linalg.norm(plain)) / row.step
    share = SITE["noise_multiplier"] * SITE["clip"] / row.step / math.sqrt(len(COHORT) - 1)
    assert np.std(found - clipped) == pytest.approx(share, rel=0.08)
    folder = synthetic.site.mailbox.checkpoints / "tiny-run" / order.id
    assert not (folder / "residual.safetensors").exists()
    with UpdateReader(folder / "update.bin") as reader:
        assert reader.header.codec == codec


def test_a_codec_that_cannot_carry_the_noise_is_refused_before_the_work(synthetic):
    """Levels too few for clip and noise, or steps too coarse for integers, fail at once with the remedy."""
    for codec, words in (
        ("fixed12s12", "has levels up to 2047"),
        ("fixed12s2", "take more bits or a smaller range"),
        ("randk8s8k10", "goes into every number"),
    ):
        order = synthetic.order(1, DISTRIBUTED, codec=codec)
        result = synthetic.do(order, permit_for(order))
        assert words in result.failure and result.seconds == 0
        synthetic.site.mailbox.discard(order.id)


def test_rounding_keeps_the_norm_that_the_accounting_rests_on(synthetic):
    """Where steps are coarse, rounded vectors would often be too long; none that is used is."""
    asked = read_asked(synthetic.order(1, DISTRIBUTED).task)
    values = np.random.default_rng(1).normal(size=9000).astype(np.float32)
    values /= np.float32(np.linalg.norm(values) / 0.5)

    def fill(start, out):
        out[:] = values[start : start + len(out)]

    from fedtrain.methods.updatefile import UpdateHeader

    header = UpdateHeader("r", 1, "s", "up", 0, "0" * 64, "fixed12s5", 4096, 9000, None)
    share = distributed.share_of(asked.site, "fixed12s5", 5, 9000)
    measured = site_noise.measure(fill, 9000, asked.site, lambda: None)
    for _ in range(20):
        key = distributed._accepted_key(header, fill, measured, share, lambda: None)
        parts = [part for _, part in distributed._rounded(header, fill, measured, share, key)]
        assert np.linalg.norm(np.concatenate(parts)) <= share.norm_max
    mean = np.zeros(9000)
    for _ in range(300):
        key = distributed.fresh_key()
        mean += np.concatenate([p for _, p in distributed._rounded(header, fill, measured, share, key)]) / 300
    # Unbiased: 9000 means of 300 roundings of deviation 1/2 at most; 7.5 deviations.
    assert np.abs(mean - values.astype(np.float64) * 32).max() < 7.5 * 0.5 / math.sqrt(300)


def test_weights_go_into_the_numbers_under_masks(synthetic):
    """With `weight_max` an update is scaled by its weight, and one above the largest counts as that."""
    plain = plain_update(synthetic)
    for weight_max, factor in ((120, 60 / 120), (30, 1.0)):
        order = synthetic.order(
            1, {"masked": {"weight_max": weight_max}}, codec="float32", attempt=weight_max
        )
        assert synthetic.do(order, None).failure == ""
        np.testing.assert_allclose(synthetic.site.update(order), plain * np.float32(factor), rtol=1e-6)


def test_a_promise_that_cannot_be_read_is_refused(synthetic):
    """A word about privacy that this version does not know is no reason to train without it."""
    order = synthetic.order(1, None)
    task = {**json.loads(order.task), "terms": {"privacy": {"records": {}}}}
    result = synthetic.do(replace(order, task=json.dumps(task)), None)
    assert "cannot be understood" in result.failure and "records" in result.failure


def test_a_noised_update_cannot_be_asked_for_twice(synthetic):
    """The second pass gives each element once: two draws of noise on one value would average out."""
    asked = read_asked(synthetic.order(1, {"site": SITE}).task)
    noised = site_noise.NoisedUpdate(
        lambda start, out: out.fill(0.001), 100, asked.site, site_noise.Measured(1.0, None)
    )
    out = np.empty(50, np.float32)
    noised(0, out)
    with pytest.raises(site_noise.PrivacyFault, match="asked for twice"):
        noised(0, out)
