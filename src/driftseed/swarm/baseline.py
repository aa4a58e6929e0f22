"""libtorrent as it comes, on loopback: what the benchmarks compare the engine and its tunnels with.

A program of its own, as libtorrent is loaded in child processes only. It has libtorrent's default settings,
except that it finds nobody by itself, talks plain TCP, and has its rate limits hold on loopback too (libtorrent
leaves local peers unlimited). It says JSON on standard output::

    python -P -m driftseed.swarm.baseline seed FILE              {"port": n}, then serves until its input ends
    python -P -m driftseed.swarm.baseline fetch FILE DIR PORT    {"seconds": s}
    python -P -m driftseed.swarm.baseline swarm FILE DIR PEERS LIMIT    {"seconds": s, "copies": c}

``FILE`` is the original; ``fetch`` reads it only to make the same torrent.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import libtorrent as lt

TIMEOUT_S: Final = 240.0
_SETTINGS: Final = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "allow_multiple_connections_per_ip": True,
    "in_enc_policy": 2,
    "out_enc_policy": 2,
    "alert_mask": int(lt.alert.category_t.status_notification),
}
_AUTOMATIC: Final = 0
"""Piece length: libtorrent's own choice."""


def make_session(limit: int) -> Any:
    """A session whose uplink is limited.

    Args:
        limit: bytes per second; 0 is unlimited.
    """
    chosen: Any = {**_SETTINGS, "upload_rate_limit": limit}
    session = lt.session(chosen)
    if limit:
        everybody = lt.ip_filter()
        everybody.add_rule("127.0.0.0", "127.255.255.255", 1 << int(lt.session.global_peer_class_id))
        session.set_peer_class_filter(everybody)
    return session


def make_torrent(path: Path) -> bytes:
    """A BitTorrent v2 torrent of a file, as libtorrent makes them."""
    torrent = lt.create_torrent(lt.list_files(str(path)), _AUTOMATIC, lt.create_torrent.v2_only)
    lt.set_piece_hashes(torrent, str(path.parent))
    encoded: bytes = lt.bencode(torrent.generate())
    return encoded


def add(session: Any, torrent: bytes, directory: Path, *, seed: bool) -> Any:
    """Have a session carry a torrent, complete or not."""
    parameters: Any = lt.load_torrent_buffer(torrent)
    parameters.save_path = str(directory)
    parameters.flags = lt.torrent_flags.seed_mode if seed else lt.torrent_flags.update_subscribe
    return session.add_torrent(parameters)


def wait_finished(sessions: list[Any]) -> None:
    """Wait until each session has finished its torrent.

    Raises:
        TimeoutError: not in ``TIMEOUT_S``.
    """
    end = time.monotonic() + TIMEOUT_S
    for session in sessions:
        while not any(isinstance(alert, lt.torrent_finished_alert) for alert in session.pop_alerts()):
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not finished in {TIMEOUT_S:.0f} s")
            session.wait_for_alert(int(left * 1000))


def seed(path: Path) -> None:
    """Serve a file until standard input ends."""
    session = make_session(0)
    add(session, make_torrent(path), path.parent, seed=True)
    say({"port": session.listen_port()})
    sys.stdin.read()


def fetch(path: Path, directory: Path, port: int) -> None:
    """Fetch a file from a seed on this machine, and say how long it took from the first connection."""
    torrent = make_torrent(path)
    session = make_session(0)
    handle = add(session, torrent, directory, seed=False)
    began = time.monotonic()
    handle.connect_peer(("127.0.0.1", port))
    wait_finished([session])
    say({"seconds": time.monotonic() - began})


def swarm(path: Path, directory: Path, peers: int, limit: int) -> None:
    """One seed and some leechers, everybody connected with everybody, every uplink limited."""
    torrent = make_torrent(path)
    sessions = [make_session(limit) for _ in range(peers + 1)]
    ports = [session.listen_port() for session in sessions]
    origin = add(sessions[0], torrent, path.parent, seed=True)
    handles = []
    for number, session in enumerate(sessions[1:]):
        target = directory / str(number)
        target.mkdir()
        handles.append(add(session, torrent, target, seed=False))
    began = time.monotonic()
    for number, handle in enumerate(handles):
        for port in ports[: number + 1]:
            handle.connect_peer(("127.0.0.1", port))
    wait_finished(sessions[1:])
    seconds = time.monotonic() - began
    copies = origin.status().total_payload_upload / path.stat().st_size
    say({"seconds": seconds, "copies": copies})


def say(what: dict[str, float]) -> None:
    """One JSON object on a line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Run what the first argument names."""
    match arguments:
        case ["seed", path]:
            seed(Path(path))
        case ["fetch", path, directory, port]:
            fetch(Path(path), Path(directory), int(port))
        case ["swarm", path, directory, peers, limit]:
            swarm(Path(path), Path(directory), int(peers), int(limit))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
