"""The one place for gRPC's settings and credentials.

Liveness of a peer is not decided here: a stopped process keeps its kernel acknowledging, so the
coordinator's lease on heartbeats decides. Keepalive only keeps NAT entries warm and finds a dead
link within `KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS`; traffic of any kind counts as an answer.
"""

from __future__ import annotations

import threading

import grpc

from fedtrain.errors import ConfigError

MESSAGE_BYTES_MAX = 4 << 20
"""Largest message either side accepts. Chunks are 1 MiB; an order with its model chain fits easily."""

KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 20_000
PING_INTERVAL_MIN_MS = 10_000
"""What the server puts up with; below `KEEPALIVE_MS`, or it would hang up on its own clients."""

STREAMS_MAX = 64
"""Concurrent calls of one connection. A site has one session and a few transfers."""

RECEIVE_WINDOW_BYTES = 4 << 20
"""What one stream may send to the coordinator before it is read: fixed, not grown by probing.

Eight uploads of 400 MB at once, peak resident memory of the server (52 MB before them): 213-260 MB
with gRPC's bandwidth probe, 178 MB with a fixed 4 MiB, 134-143 MB with 64 KiB to 1 MiB, at equal
throughput on loopback. One upload at 40 ms round trip: 50 MB/s with the probe, 40 with 4 MiB,
20 with 1 MiB, 16 with 64 KiB. So 4 MiB keeps the bound on memory and most of a long link. A site
keeps the probe: it has one coordinator and few streams.
"""

Options = list[tuple[str, str | int]]


def _shared() -> Options:
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # the one that really ends a dead link
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # 0: no bound, an idle session is pinged for days
    ]


def server_options() -> Options:
    """Options of the coordinator's server."""
    return [
        *_shared(),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
        ("grpc.max_concurrent_streams", STREAMS_MAX),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", RECEIVE_WINDOW_BYTES),
        ("grpc.so_reuseport", 0),  # else a second coordinator would bind the same port unnoticed
    ]


def channel_options(server_name: str, proxy: str | None = None) -> Options:
    """Options of a client's channel.

    Args:
        server_name: DNS name in the coordinator's certificate, whatever address is dialled.
        proxy: `host:port` of an HTTP CONNECT proxy, or None for none. The environment's `http_proxy`
            is never obeyed: gRPC would take it even for 127.0.0.1.
    """
    if proxy is None:
        way: Options = [("grpc.enable_http_proxy", 0)]
    else:
        way = [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", f"http://{proxy}")]
    return [
        *_shared(),
        *way,
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.use_local_subchannel_pool", 1),  # a client is a connection; a renewed one gets its own
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # also the time that a TLS handshake may take
        ("grpc.max_reconnect_backoff_ms", 1_000),  # the agent has a back-off of its own on top
    ]


class ServerIdentity:
    """What the server shows and whom it accepts, to be replaced while it serves.

    Connections that stand keep what they were made with; new ones get the newest.

    Args:
        key_pem, chain_pem: the server's key, and its certificate with what is presented behind it.
        roots_pem: clients must show a certificate of one of these.
    """

    def __init__(self, key_pem: bytes, chain_pem: bytes, roots_pem: bytes) -> None:
        self._guard = threading.Lock()
        self._next: grpc.ServerCertificateConfiguration | None = None
        try:
            first = grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], roots_pem)
            self.credentials = grpc.dynamic_ssl_server_credentials(
                first,
                self._fetch,  # type: ignore[arg-type]  # the stubs know nothing of "as before"
                require_client_authentication=True,
            )
        except ValueError as error:
            raise ConfigError(f"the server's certificate or key cannot be used ({error})") from error

    def replace(self, key_pem: bytes, chain_pem: bytes, roots_pem: bytes) -> None:
        """From the next handshake on."""
        following = grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], roots_pem)
        with self._guard:
            self._next = following

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks before each handshake, in a thread of its own; None is "as before"."""
        with self._guard:
            following, self._next = self._next, None
            return following


def server_credentials(key_pem: bytes, chain_pem: bytes, ca_pem: bytes) -> grpc.ServerCredentials:
    """Those of a server whose identity never changes; clients must show one of `ca_pem`."""
    return ServerIdentity(key_pem, chain_pem, ca_pem).credentials


def channel_credentials(key_pem: bytes, chain_pem: bytes, ca_pem: bytes) -> grpc.ChannelCredentials:
    """A client's key and certificate chain; the server must show one of `ca_pem`."""
    return grpc.ssl_channel_credentials(
        root_certificates=ca_pem, private_key=key_pem, certificate_chain=chain_pem
    )
