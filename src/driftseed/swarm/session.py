"""libtorrent's session, confined: what it may reach, whom the limits hold for, and how it wakes its owner.

Settings by name and number are in ``settings.py``; here is what libtorrent has filters and calls for instead.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any, Final

import libtorrent as lt

from driftseed.swarm import settings

RECEIVE_BYTES: Final = 256 * 1024

_NO_PLUGINS: Final = 0
"""Above all no peer exchange. What a peer calls an address of others is here one of the device's own loopback
addresses, so it could make the engine connect to any local service."""
_NOT_LOOPBACK: Final = (
    ("0.0.0.0", "126.255.255.255"),  # noqa: S104  # a range of peers, not a listener
    ("128.0.0.0", "255.255.255.255"),
    ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
)
"""Never talked to: a peer may name addresses to connect to (BEP 55, which cannot be switched off)."""
_BLOCKED: Final = 1
"""In an ip_filter: this address is not talked to."""


class Session:
    """A libtorrent session that talks with loopback addresses only."""

    def __init__(self) -> None:
        category = lt.alert.category_t
        mask = (
            category.error_notification
            | category.status_notification
            | category.storage_notification
            | category.peer_notification
            | category.connect_notification
        )
        self.peer_id: Final = (
            settings.PEER_ID_PREFIX + secrets.token_hex(settings.PEER_ID_RANDOM_BYTES).encode()
        )
        chosen: Any = settings.SETTINGS | {"alert_mask": mask, "peer_fingerprint": self.peer_id.decode()}
        self.libtorrent: Final = lt.session(chosen, _NO_PLUGINS)
        # libtorrent takes local peers for neighbours in the same room: outside all limits and slots. Here they
        # are remote devices behind tunnels, so every address is put into the one class that has the limits.
        everybody = lt.ip_filter()
        everybody.add_rule("127.0.0.0", "127.255.255.255", 1 << int(lt.session.global_peer_class_id))
        self.libtorrent.set_peer_class_filter(everybody)
        self._blocked = lt.ip_filter()
        for first, last in _NOT_LOOPBACK:
            self._blocked.add_rule(first, last, _BLOCKED)
        self.libtorrent.set_ip_filter(self._blocked)
        self.wake, wake_write = socket.socketpair()
        """Readable when there are alerts."""
        self.wake.setblocking(False)
        wake_write.setblocking(False)
        self._wake_write = wake_write  # libtorrent keeps only its number
        self.libtorrent.set_alert_fd(wake_write.fileno())

    def block(self, ip: str) -> None:
        """Talk with an address no more, whatever its port: a device comes from a new one each time."""
        self._blocked.add_rule(ip, ip, _BLOCKED)
        self.libtorrent.set_ip_filter(self._blocked)

    def alerts(self) -> list[Any]:
        """What happened since; to be called when ``wake`` is readable.

        Alerts are dead after the next call (arvidn/libtorrent#6437): none may be kept.
        """
        self.wake.recv(RECEIVE_BYTES)
        return list(self.libtorrent.pop_alerts())
