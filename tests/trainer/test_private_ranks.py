"""Several processes that train as one site: one draw, one sum, one noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from private_models import RECORDS, private_step

from fedtrain.errors import LocalError
from fedtrain.trainer.privacy import ranks
from fedtrain.trainer.privacy.conditions import mean_square_band

LIMIT_S = 120

SCRIPT = """
import json, sys
sys.path[:0] = [{here!r}]
from datetime import timedelta
import torch
import torch.distributed as distributed
from private_models import private_step
from fedtrain.errors import LocalError
torch.set_num_threads(1)
rank = int(sys.argv[1])
limit = timedelta(seconds={limit})
distributed.init_process_group("gloo", init_method={store!r}, rank=rank, world_size=2, timeout=limit)
def outcome(mode):
    step = private_step(mode, rate=1.0)
    clipped, totals = step._clipped, []
    def kept(drawn):
        total, broken = clipped(drawn)
        totals.append(total.tolist())
        return total, broken
    step._clipped = kept
    facts = step.run()
    gradient = torch.cat([parameter.grad.flatten() for parameter in step.coverage.parameters])
    found = {{"drawn": facts.drawn, "gradient": gradient.tolist(), "total": totals[0]}}
    if rank == 1:
        def missed(*given):
            raise LocalError("planted")
        step.clipper.clipped_sum = missed
    try:
        step.run()
    except LocalError as fault:
        found["fault"] = str(fault)
    return found
print(json.dumps([outcome("ghost"), outcome("per-example")]))
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_two_ranks_add_one_noise_to_the_sum_of_both(tmp_path, monkeypatch):
    """In either mode both ranks end with the same bits; the sum is that of one process, and the noise is
    there once; a fault at one rank ends the step at both (the noise's bound is missed once in 10^12)."""
    # No look-up of this machine's name: the two meet on its own address.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    here = str(Path(__file__).parent)
    script = SCRIPT.format(here=here, store=f"file://{tmp_path}/store", limit=LIMIT_S)
    command = [sys.executable, "-W", "ignore", "-c", script]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        for rank in (0, 1)
    ]
    try:
        outputs = [json.loads(each.communicate(timeout=LIMIT_S)[0].splitlines()[-1]) for each in running]
    finally:
        for each in running:
            each.kill()
            each.wait()
    assert [each.returncode for each in running] == [0, 0]
    for mode, first, second in zip(("ghost", "per-example"), *outputs, strict=True):
        compare(mode, first, second)


def compare(mode: str, first: dict, second: dict) -> None:
    """The outcomes of both ranks with each other and with a step of one process."""
    faults = [found.pop("fault") for found in (first, second)]
    assert first == second and first["drawn"] == RECORDS
    alone = private_step(mode, rate=1.0)
    expected, _ = alone._clipped(alone.draw(alone._stream(), RECORDS, 1.0))
    total = torch.tensor(first["total"], dtype=torch.float64)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
    noise = torch.tensor(first["gradient"], dtype=torch.float64) * alone.expected_batch - total
    low, high = mean_square_band(len(noise))
    # Noise of each rank's own, added up, would have twice the mean square.
    assert low < float((noise**2).mean()) / alone.deviation**2 < min(high, 2.0)
    assert faults[1] == "planted" and "1 of the 2 processes that train together" in faults[0]


def test_one_process_is_its_own_world():
    """Without a process group there is one rank, its sum is its own, and its faults are as they were."""
    assert ranks.world() == (0, 1)
    values = torch.arange(3.0)
    assert torch.equal(ranks.summed(values), torch.arange(3.0))
    assert ranks.shared_key() != ranks.shared_key()
    with ranks.together():
        pass
    with pytest.raises(ValueError, match="my own"), ranks.together():
        raise ValueError("my own")


def test_a_lost_process_is_an_error_with_a_remedy(monkeypatch):
    """What the process group raises becomes a local error that says what to look at."""

    def gone(values):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ranks, "world", lambda: (0, 2))
    monkeypatch.setattr(distributed, "all_reduce", gone)
    with pytest.raises(LocalError, match="do not reach each other any more"):
        ranks.summed(torch.zeros(1))
