"""DECISIONS: what the coordinator and a site's agent decide, as pure functions.

Nothing in this room reads a clock, a file, a socket or a random source: time is a field of
the event, chance is a seed in the state, and a tensor is known by its digest, size and norm.
"""
