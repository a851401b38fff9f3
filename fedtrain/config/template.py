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
trainer:
  launch: process           # process: the agent starts the trainer; external: you start it yourself
  isolation: auto           # walls around it: auto, as the machine grants; required, all or no trainer; none
#  user: trainer            # its account, if the agent is root; `fedtrain peer check` shows the walls

# The data, by names that runs use. Files never leave the site; only the trainer opens them.
datasets: {{}}
#  corpus:
#    path: /data/corpus/*.txt
#    format: text
#    licence: CC-BY-4.0
#    rights:                   # each true, false, or the tasks that it holds for
#      discoverable: true      # the coordinator may know that this data set exists, and how much it holds
#      execute: [causal_lm]    # tasks that may train on it
#      read: false             # records may not leave the site
#      write: false

# What this site takes part in. A clause that is left out does not bind, but what is not listed is denied.
# The agent signs the whole and names it in every answer, so read it as you would any contract.
contract:
  runs: []                  # names or patterns of runs, e.g. ["library-*"]
  tasks: []                 # tasks, e.g. [causal_lm]
  cohort_min: 2             # fewest sites in a round, this one included
  organisations_min: 1      # fewest institutions among them, by the coordinator's signed roster
  use: non-economic         # economic: also runs for economic use
  approval: automatic       # manual: `fedtrain peer approve` says yes to each run; hold: and to each update
#  licences: [Apache-2.0, "CC-BY-*"]     # that the trained model may be put under
#  hours: "20:00-06:00 Europe/Berlin"    # when orders are accepted; work that has begun is ended
#  upload_max_per_day: 10GB              # of updates; days as the zone above counts them
#  upload_max_per_round: 1GB
#  gpu_hours_max: 500                    # accelerator hours in all; a trainer without one counts as one
#  models:
#    size_max: 4GB                       # of the model's file
#    layouts: []                         # digests of layouts, where only these models are allowed
#    limits: {{layers: 24, width: 1024}}   # largest numbers in a run's `task.model`
#  require:                              # a run without these is refused; this version has none of them
#    masked: true
#    epsilon_max: 8.0
#    unit: record

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
