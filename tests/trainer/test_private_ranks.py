"""Several processes that train as one site: one draw, one sum, one noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
sys.path[:0] = [{here!r}]
import torch
import torch.distributed as distributed
from private_models import private_step
torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method={store!r}, rank=rank, world_size=2)
step = private_step("per-example", rate=1.0)
totals = []
exact, step._check_released = step._check_released, lambda value: (totals.append(value), exact(value))
facts = step.run()
gradient = torch.cat([parameter.grad.flatten() for parameter in step.coverage.parameters])
print(json.dumps([facts.drawn, gradient.tolist(), (totals[0] * step.grid).tolist()]))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_add_one_noise_to_the_sum_of_both(tmp_path):
    """Both ranks end with the same bits; the sum is that of one process, and the noise is there once."""
    import torch
    from private_models import RECORDS, private_step

    here = str(Path(__file__).parent)
    script = SCRIPT.format(here=here, store=f"file://{tmp_path}/store")
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, str(rank)], stdout=subprocess.PIPE, cwd=root
        )
        for rank in (0, 1)
    ]
    outputs = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert outputs[0] == outputs[1] and outputs[0][0] == RECORDS
    alone = private_step("per-example", rate=1.0)
    kept = []
    exact, alone._check_released = alone._check_released, lambda value: (kept.append(value), exact(value))
    alone.run()
    total = torch.tensor(outputs[0][2], dtype=torch.float64)
    torch.testing.assert_close(total, kept[0] * alone.grid, atol=1e-5, rtol=1e-5)
    noise = torch.tensor(outputs[0][1], dtype=torch.float64) * alone.expected_batch - total
    # 291 values: twice the variance, or half of it, is out of reach of chance (6 deviations).
    assert float(noise.std()) == pytest.approx(alone.deviation, rel=0.25)
