"""Starts NVFlare's proof-of-concept processes, does one job, stops them. Runs in NVFlare's environment.

    python drive.py SITES PARAMETERS ROUNDS

The workspace is the one that NVFLARE_POC_WORKSPACE names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.poc_env import PocEnv


def main() -> None:
    """One job of `NumpyFedAvgRecipe`, its first weights from a file."""
    sites, parameters, rounds = map(int, sys.argv[1:4])
    weights = Path(os.environ["NVFLARE_POC_WORKSPACE"]).with_name("initial.npy")
    np.save(weights, np.random.default_rng(1).standard_normal(parameters, np.float32))
    recipe = NumpyFedAvgRecipe(
        name="synthetic-rounds",
        initial_ckpt=str(weights),
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("client.py")),
    )
    environment = PocEnv(num_clients=sites)
    try:
        run = recipe.execute(environment)
        run.get_result(clean_up=False)
        print(run.get_status())
    finally:
        environment.stop()


if __name__ == "__main__":
    main()
