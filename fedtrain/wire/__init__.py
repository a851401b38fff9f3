"""BYTES: protobuf and gRPC, which never leave this room.

Outside it a conversation consists of the plain values of `core.messages`, `core.orders` and
`wire.values`. Inside, bytes are read strictly before anyone sees them: `shapes` holds a field to its
bounds, `convert` lists every message, `status` carries errors across, `chunks` moves blobs, `options`
is the one place for channel settings, `epochs` and `memory` say and remember which coordinator is obeyed,
`versions` which protocol is spoken. `server` is the one end, `client`, on a `connection`, the other.
"""
