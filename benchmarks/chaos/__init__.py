"""Chaos on one machine: real processes, real sockets, a proxy that is a bad network, a seed.

    python -m benchmarks.chaos [--quick] [--cells ...] [--seed N] [--soak MINUTES] [--json FILE]

`matrix` runs every combination of kills, losses and link speeds; `soak` kills at random for as long as
asked and watches memory, disk and descriptors. What happened to the updates is judged afterwards by
`auditor`, from the journals of the coordinator and of the sites, and from nothing else.
"""
