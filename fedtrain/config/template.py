"""The peer.yaml that `fedtrain join` leaves at a site: valid as it stands, and allowing nothing yet."""

from __future__ import annotations

import json

_TEMPLATE = """\
# This site's declaration. The agent reads it at start and holds every order against it.
# Nothing is allowed until you list it: with the lines below, this site refuses every run.

site: {site}
coordinator: {coordinator}
proxy: {proxy}                 # HOST:PORT of an HTTP CONNECT proxy, where the site needs one
state: state                # certificate, keys, journal, blobs: for the agent alone
mailbox: mailbox            # shared with the trainer, which has no network
trainer: {{launch: process}}  # process: the agent starts the trainer; external: you start it yourself

# The data, by names that runs use. Files never leave the site; only the trainer opens them.
datasets: {{}}
#  corpus:
#    path: /data/corpus/*.txt
#    format: text
#    licence: CC-BY-4.0
#    rights:
#      discoverable: true      # the coordinator may know that this data set exists
#      execute: [causal_lm]    # tasks that may train on it
#      read: false             # records may not leave the site
#      write: false

# What this site takes part in.
contract:
  runs: []                  # names or patterns of runs, e.g. ["library-*"]
  tasks: []                 # tasks, e.g. [causal_lm]
  cohort_min: 2             # fewest sites in a round, this one included
  use: non-economic         # economic | non-economic

# Facts for reports; leave out what you do not know.
energy: {{}}
#  pue: 1.4
#  price_eur_per_kwh: 0.20
#  co2_g_per_kwh: 380
"""


def peer_template(site: str, coordinator: str, proxy: str | None = None) -> str:
    """Text of a commented peer.yaml for `site`, which enrolled at `coordinator` (HOST:PORT)."""
    return _TEMPLATE.format(
        site=json.dumps(site), coordinator=json.dumps(coordinator), proxy=json.dumps(proxy)
    )
