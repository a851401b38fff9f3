"""WORK at the site: a process that sees the data and has no network.

    mailbox ──order──▶ process ──▶ session ──▶ task (tasks/) ◀── data
                          │           │
                          │           ├─ feedback      pseudo-gradient + residual -> update file
                          │           └─ checkpoints   optimiser state, residual, steps, by order id
                          └──result──▶ mailbox

A session carries out one order from start to result, and everything it does follows from the
order, the model file, the named parent's checkpoint and the data: a repeated order gives the same
bytes. torch is imported by the tasks that need it and by nothing else in this room.
"""
