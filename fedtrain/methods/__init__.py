"""NUMBERS: what happens to the flat float32 vector, block by block, in numpy alone.

A model is one flat vector: its shared tensors in layout order. Everything here works on ranges
of that vector with reused buffers, so memory does not grow with the model, and every operation
is an IEEE float32 operation in a fixed order, so equal inputs give equal bits everywhere.

    layout       which tensor lies where in the vector
    modelfile    the public model on disk (safetensors)
    codecs       float32 values to bytes and back
    summable     codecs whose integers may be added up (`slabs`, `selection` below them)
    updatefile   an update or a delta on disk: a header and encoded blocks
    aggregators  many updates to one
    ranges       the vector cut into ranges, through threads, digests in order
    outer        the step that the coordinator takes along the combined update
    aggregation  all of that for one round, out of core; and a delta applied at a site
    ring         arithmetic modulo 2^k, and k bits a value on the wire
    shamir       a secret in shares
    maskedfile   a masked vector on disk
    masking      masks on at a site and off at the coordinator, out of core
    discretegaussian  noise on the integers
"""
