"""Attacks on our own promises: what an adversary can really learn, beside what is claimed.

`bounds` turns counted errors into a lower bound on the leak, `distinguish` runs a mechanism with and
without one unit and tells the two apart, `exposure` measures how much of a planted secret a model
remembers. `subjects` puts the trainer's own step and update under attack, `task_audit` a run's own task,
on `demo_data` where a site names none.
"""
