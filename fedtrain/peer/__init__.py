"""SHELL: a site's agent. gRPC out, the mailbox in; every decision is made in `core.agent`.

`join` makes a site out of an invite, `run` works for it. Nothing here ever imports torch: whoever has
the network never sees the data, and the trainer is a process of its own.
"""

from fedtrain.peer.joining import JoinReport, join
from fedtrain.peer.process import run
from fedtrain.peer.settings import AgentSettings

__all__ = ["AgentSettings", "JoinReport", "join", "run"]
