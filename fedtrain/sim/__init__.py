"""One seed, one world: sites, coordinator, network, crashes and operators, all in virtual time.

A world runs the production driver and the production machines (`core.transitions`, `core.agent`)
over in-memory ports. What the real shells do around them is modelled small here. An auditor with an
account of its own listens to everything and compares; the same seed gives the same trace, bit for
bit. `python -m fedtrain.sim --help` says how to run many worlds and how to repeat one.

    clock        virtual milliseconds, what is due when, and the clocks on machines' walls
    chance       independent streams of numbers, and a key for every fault
    choice       which part of a world happens: all of it, or what is left of it
    minimise     the smallest part of a failing world that still fails
    scene        what every part of a world shares: clock, chance, plan, transcript
    plan         what a seed draws: sites, runs, a standby, what people decide (`acts`), the rates of `faults`
    process      something that lives, stops, crashes at a chosen place, and starts again
    disk         journals that refuse, blobs, partial transfers, flipped bits
    calls        what travels, over the `network`: lost, doubled, delayed, slow, cut off one way or both
    keys         stand-ins for the cryptography of masked rounds; `veils` are their numbers
    seats        a site's part in masked rounds: its secrets, and what it says
    numbers      tiny vectors, their digests, one round's arithmetic by `methods`
    coordinator  the coordinator's shell, with its `sessions`, its `intake` of blobs, its `making` of versions
    succession   backups, restores, a standby that takes over
    site         the agent's shell, with its calls (`asking`), `outbox` and `models`
    trainer      the process that works for a while, dies, hangs or fails
    operators    they start, steer and take back runs, and decide who belongs to the consortium
    owners       a site's own people: yes and no to runs, and a look at what leaves
    liar         somebody with a site's certificate and bad intent
    auditor      the account that does not ask the core: a `history` per journal, with `conduct`, `ledger`,
                 `account`, `checks`, `veil`, `wayback` and `recomputation`; a `permission` per site;
                 `secrecy` and `exposure` for what could be computed from what is said under masks
    world        all of it, from a seed to a verdict
"""
