"""Faults to be planted in masked rounds, at the coordinator and at the sites."""

from __future__ import annotations

from planted_faults import Mutation

from fedtrain.sim.plan import PRIVATE

CORE_TESTS = "tests/core/test_core_masks.py"

MASKED = (
    Mutation(
        "ask to open with one signature fewer",
        "core/masks.py",
        "return min(sites, math.ceil(round(sites * (1 + DROPOUT_SHARE), 6) / 2) + 1)",
        "return min(sites, math.ceil(round(sites * (1 + DROPOUT_SHARE), 6) / 2))",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "open whatever is asked for",
        "core/masked_seat.py",
        "if asked.session != seat.session or asked.survivors != seat.survivors:",
        "if asked.session != seat.session:",
        "tests/core/test_core_masks_burnt.py::test_shares_are_given_for_the_affirmed_set_only",
    ),
    Mutation(
        "give both shares of a lost site",
        "sim/seats.py",
        "seeds = {site: shares[site][1].hex() for site in seat.survivors if site in shares}",
        "seeds = {site: shares[site][1].hex() for site in shares}",
        seed=PRIVATE + 4,
    ),
    Mutation(
        "keep the secrets behind the shares",
        "sim/seats.py",
        'return replace(kept, secrets=None, own=(b"", b""), told={}), document',
        'return replace(kept, own=(b"", b""), told={}), document',
        seed=PRIVATE + 1,
    ),
    Mutation(
        "mask with the same keys again",
        "sim/seats.py",
        'secrets = Secrets.drawn(owner.scene.chance.stream("mask keys", owner.name))',
        "secrets = Secrets(*(digest_of(f'{owner.name} {kind}'.encode())[:32].encode() for kind in 'abc'))",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "go on with an abandoned session",
        "core/rounds.py",
        "            if seat.standing in (Standing.REFUSED, Standing.FAILED)\n",
        "            if seat.standing is not Standing.LOST\n",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "sum on with a survivor that has left",
        "core/removal.py",
        "if run.phase not in (Phase.UNMASKING, Phase.AGGREGATING) or not gone & set(opened.counted):",
        "if run.phase is not Phase.AGGREGATING or not gone & set(opened.counted):",
        f"{CORE_TESTS}::test_a_withdrawal_while_unmasking_ends_the_session",
    ),
    Mutation(
        "go on from an update that is only stored",
        "core/uploads.py",
        "parents=run.parents if masked else put(run.parents, site, order.id),",
        "parents=put(run.parents, site, order.id),",
        seed=PRIVATE + 18,
    ),
    Mutation(
        "open another set of the same round",
        "core/masked_rounds.py",
        "    run = replace(run, round=replace(opened, bound=held.survivors))\n",
        "",
        f"{CORE_TESTS}::test_a_set_that_was_to_be_opened_is_asked_again_and_no_other",
    ),
    Mutation(
        "open two sums of a round",
        "core/masked_seat.py",
        'before.sets.get(str(index), "") not in ("", _set_digest(survivors)):',
        'before.sets.get(str(index), "") not in ("", *before.sets.values()):',
        f"{CORE_TESTS}::test_a_second_sum_of_a_round_over_other_sites_is_refused",
    ),
    Mutation(
        "go on with the session in a copy",
        "core/membership.py",
        "_burnt(state, run) if moved else (run, NOTHING))",
        "_burnt(state, run) if not moved else (run, NOTHING))",
        f"{CORE_TESTS}::test_a_copy_of_the_coordinator_burns_the_session",
    ),
    Mutation(
        "wait for keys without end",
        "core/masked_rounds.py",
        """and s not in held.adverts]
    if silent and state.now_ms < held.until_ms:
""",
        """and s not in held.adverts]
    if silent:
""",
        f"{CORE_TESTS}::test_a_stage_goes_on_without_who_is_silent",
    ),
    Mutation(
        "tell of a session before the order is taken",
        "core/masked_rounds.py",
        "    works = seat.standing is Standing.WORKING\n",
        "    works = seat.standing in AT_WORK\n",
        f"{CORE_TESTS}::test_documents_wait_for_consent",
    ),
    Mutation(
        "take the masks of a lost site off with the wrong sign",
        "sim/veils.py",
        "total = total - pair if site < lost else total + pair",
        "total = total + pair if site < lost else total - pair",
        seed=PRIVATE + 4,
    ),
    Mutation(
        "count a site that is not in the sum",
        "core/masked_rounds.py",
        "stored = tuple(s for s, seat in run.round.seats.items() if seat.standing is Standing.STORED)",
        "stored = tuple(s for s, seat in run.round.seats.items() if s in run.round.masks.sharers)",
        seed=PRIVATE + 4,
    ),
)
