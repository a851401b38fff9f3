"""The two files that people write: one YAML is a whole run, one YAML is a whole site.

`load_run` and `load_peer` read them into frozen pydantic models. Whatever is wrong becomes a
`ConfigError` that names the file, the line, the key, what was found and what would be valid.
Nothing is read from the environment, and no key is ever ignored.
"""

from __future__ import annotations

from fedtrain.config.peer import PeerConfig, load_peer
from fedtrain.config.run import RunConfig, load_run
from fedtrain.config.template import peer_template

__all__ = ["PeerConfig", "RunConfig", "load_peer", "load_run", "peer_template"]
