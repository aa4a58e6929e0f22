"""How the BitTorrent engine is set, and why.

libtorrent never touches the network here: it listens on loopback, and every connection goes through a tunnel
to one device. So what libtorrent does to find, reach and hide from peers is off, and what it assumes of loopback
(fast, unlimited, trusted) is undone. Names are those of libtorrent's ``settings_pack``.
"""

from __future__ import annotations

from typing import Any, Final

from driftseed.core import limits

LISTEN: Final = "127.0.0.1:0"
"""Any free port: the agent is told which one, and only its tunnels need to know."""

_ISOLATION: Final = {
    "listen_interfaces": LISTEN,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_ip_notifier": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    # Of what a peer can make this side connect to (BEP 55), at least no system service.
    "no_connect_privileged_ports": True,
    # pe_disabled: the tunnel is encrypted, and twice is only slower.
    "in_enc_policy": 2,
    "out_enc_policy": 2,
    # No version: a peer shall not choose its attack by it.
    "user_agent": "",
}

PEER_ID_PREFIX: Final = b"-DS0000-"
PEER_ID_RANDOM_BYTES: Final = 6
"""In hexadecimal they fill a peer id (BEP 20: 20 bytes), so that the engine knows its own: libtorrent does not
tell it, and ``division`` needs it."""

_PEERS: Final = {
    # A device has one address whatever it connects from; duplicates are told by their peer id instead.
    "allow_multiple_connections_per_ip": True,
    # Each device may come in by its own tunnel and be dialled by ours at the same time.
    "connections_limit": 8 * limits.SWARM_PEERS_MAX,
    "max_peerlist_size": 8 * limits.SWARM_PEERS_MAX,
    # A tunnel that was lost and made again is dialled again at once, not after a minute, and a device that
    # was away for an hour is not struck off: whom to try is the overlay's decision.
    "min_reconnect_time": 1,
    "max_failcount": 31,
    "peer_connect_timeout": 10,
    "handshake_timeout": 10,
    # No staggering: these are loopback connections, and a small payload is over before the second second.
    "connection_speed": 500,
    "smooth_connects": False,
    "torrent_connect_boost": 255,
    # Nobody is dropped to make room for a better one: the overlay chose them.
    "peer_turnover": 0,
    "listen_queue_size": 64,
}

_SPEED: Final = {
    # Everybody may download at once. What is scarce is the uplink, and that has its own limit; slots would
    # add a wait of up to `unchoke_interval` before a newcomer's first byte.
    "unchoke_slots_limit": -1,
    # Requests in flight to one peer are what the rest of the swarm cannot get from somebody else meanwhile:
    # half a second of them is enough at the round-trip times of tunnels.
    "request_queue_time": 1,
    # Bandwidth is handed out in ticks: shorter ones share an uplink more evenly and start sooner.
    "tick_interval": 100,
    "rate_limit_ip_overhead": False,
    "no_atime_storage": True,
    # A block that a stalled tunnel owes us is asked of somebody else after so many seconds.
    "piece_timeout": 10,
    "request_timeout": 20,
    # Rarest first from the first piece on, and always: at random, or in order, several ask the origin for
    # the same piece.
    "initial_picker_threshold": 0,
    "auto_sequential": False,
    # Above this many seconds' worth, libtorrent asks one peer for runs of neighbouring pieces, for the disk's
    # sake. Every member then asks the origin for long runs that overlap, past rarity and past `division`.
    "whole_pieces_threshold": 0,
}

_MEMORY: Final = {
    # The agent runs on small boards; threads and queues are sized for one or two contents at a time.
    "aio_threads": 2,
    "hashing_threads": 1,
    "file_pool_size": 16,
    "max_queued_disk_bytes": 8 * limits.MIB,
    "send_buffer_watermark": 512 * limits.KIB,
    "max_peer_recv_buffer_size": 1 * limits.MIB,
    "max_allowed_in_request_queue": 512,
    "alert_queue_size": 4096,
    "close_file_interval": 0,
    # Not started behind our back: every torrent is added to run, and runs until removed.
    "active_downloads": -1,
    "active_seeds": -1,
    "active_limit": -1,
    "active_checking": 2,
    # A full disk is retried when the agent says so (``Engine.resume``), not by a timer of ten minutes.
    "optimistic_disk_retry": 24 * 3600,
}

SETTINGS: Final[dict[str, Any]] = {**_ISOLATION, **_PEERS, **_SPEED, **_MEMORY}

TORRENT_CAPS: Final[Any] = {
    "max_pieces": 256 * limits.KIB,
    "max_decode_depth": 16,
    "max_decode_tokens": 4096,
    "max_buffer_size": limits.TORRENT_BYTES_MAX,
}
"""For ``load_torrent_buffer``: the torrent was checked before it came here, and this is the second lock."""

MEMORY_BYTES_MAX: Final = 512 * limits.MIB
"""RLIMIT_DATA of the engine's process: a peer that makes it swell ends the engine, not the device."""
OPEN_FILES_MAX: Final = 1024
PROGRESS_INTERVAL_S: Final = 0.5
"""Seconds between reports on a content that is being fetched, checked or sent."""
