"""One seed, one world: sites, coordinator, network, crashes and operators, all in virtual time.

A world runs the production driver and the production machines (`core.transitions`, `core.agent`)
over in-memory ports. What the real shells do around them is modelled small here. An auditor with an
account of its own listens to everything and compares; the same seed gives the same trace, bit for
bit. `python -m fedtrain.sim --help` says how to run many worlds and how to repeat one.

    clock        virtual milliseconds and what is due when
    scene        what every part of a world shares: clock, chance, plan, transcript
    plan         what a seed draws: sites, runs, fault rates
    process      something that lives, crashes at a chosen place, and starts again
    network      messages lost, doubled, delayed, reordered, cut off
    numbers      tiny vectors, their digests, one round's arithmetic by `methods`
    coordinator  the coordinator's shell, with its disk and its aggregation
    site         the agent's shell, with its outbox and its models
    trainer      the process that works for a while, dies, hangs or fails
    auditor      the account that does not ask the core, with `ledger` and `recomputation`
    world        all of it, from a seed to a verdict
"""
