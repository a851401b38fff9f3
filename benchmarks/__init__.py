"""Scripts that measure, one per question; `LOG.md` keeps what they said.

A package of its own name on purpose: a dependency (Opacus) installs a `benchmarks` beside it, which would
win over a folder without this file.
"""
