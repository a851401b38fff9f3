"""Memory stays bounded whatever the model: measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from fedtrain.methods.aggregation import Aggregation, Contribution, aggregate, apply_delta, init_exact
from fedtrain.methods.codecs import codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter

folder, count, block = Path(sys.argv[1]), 25_000_000, 1 << 20
layout = Layout((Entry("w", (count,)),))
values = np.random.default_rng(0).standard_normal(block).astype(np.float32)
model = ModelWriter(folder / "model", layout, "run", 0)
for start in range(0, count, block):
    model.write(values[: count - start])
model.close()
init_exact(folder / "model", folder / "exact")
contributions = []
encoded = {n: codec("int8").encode(values[:n], bytes(32)).tobytes() for n in (block, count % block)}
for site in ("a", "b", "c", "d"):
    header = UpdateHeader("run", 0, site, "up", 0, layout.digest, "int8", block, count, None)
    writer = UpdateWriter(folder / site, header)
    for start in range(0, count, block):
        writer.write_block(encoded[min(block, count - start)])
    writer.close()
    contributions.append(Contribution(site, f"run.0.0.{site}", str(folder / site), 1, 5000))
(folder / "v1").mkdir()
job = Aggregation("run", 1, 0, 0, layout, tuple(contributions), "nesterov", {}, "mean", None, "int8", block,
                  folder / "exact", folder / "model", None, folder / "v1")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
result = aggregate(job, threads=4)
digest = apply_delta(folder / "model", result.delta_path, folder / "site", layout, "run", 1)
assert digest == result.model_digest
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_of_a_round_is_bounded(tmp_path: Path) -> None:
    """25M parameters x 4 sites, then the delta applied: peak memory grows by less than 64 MiB and slack.

    The model alone has 100 MB, the decoded updates 400 MB.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < (64 + 8) * 1024
