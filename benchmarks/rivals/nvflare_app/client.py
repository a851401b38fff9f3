"""Site's side under NVFlare: no training, but weights that change each round and differ between sites."""

from __future__ import annotations

import zlib

import numpy as np
import nvflare.client as flare


def main() -> None:
    """Answer models until the job ends."""
    flare.init()
    site = zlib.crc32(flare.get_site_name().encode()) % 1000
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        step = np.float32(1e-3 * (model.current_round + site / 1000))
        weights = {name: array + step for name, array in model.params.items()}
        flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
