"""PRIVACY at the site: nothing that depends on a record leaves before it is clipped and noised.

    plan        what one order is permitted to do, as plain numbers
    sampling    which units (records, or groups of them) a step draws, from the system's randomness
    clipping    the sum of the drawn units' clipped gradients, by Opacus
    noise       Gaussian noise on an integer grid, from a key that is used once
    conditions  what must hold of every step, measured apart from the code that makes it so
    ranks       several processes as one: one draw, one sum, one noise
    step        all of these, once per optimiser step
    layers      how Opacus takes the gradients of layers that it does not know
    site        clip and noise of a whole update, where the unit is the site

Record-level privacy is DP-SGD (Abadi et al., Deep Learning with Differential Privacy, 2016, arXiv
1607.00133) with Poisson sampling; neighbours differ by adding or leaving out one unit.
"""
