"""SHELL: the coordinator's process. gRPC in, effects out; every decision is made in `core`.

`init` makes a consortium in a folder, `serve` runs it. Nothing here ever imports torch.
"""

from fedtrain.coordinator.process import serve
from fedtrain.coordinator.setup import init

__all__ = ["init", "serve"]
