"""The BitTorrent engine: a child process of the agent, and the only place where libtorrent is loaded.

``python -P -m driftseed.swarm.engine FD`` talks with its parent over the socket FD (frames: ``protocol.py``). It is
a process of its own because it reads what hostile members send, in C++: if that kills it, the agent starts
another one. It ends when told, and when the socket ends, so it never outlives its parent.

One thread runs here, woken by the socket or by libtorrent (which writes a byte to a socket when it has
alerts: its callback into Python has deadlocked, arvidn/libtorrent#4638). Nothing is polled; a timer runs only
while a content moves.
"""

from __future__ import annotations

import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import libtorrent as lt

from driftseed.swarm import protocol, settings
from driftseed.swarm.division import piece_priorities
from driftseed.swarm.session import RECEIVE_BYTES, Session

SEND_TIMEOUT_S: Final = 30.0
"""Seconds in which the parent must take an event; it reads all the time, so it is gone or hung."""
FLUSH_TIMEOUT_S: Final = 1.5
"""Seconds for writing out what is in memory when told to stop."""

_PLAIN_STATUS: Final = 0
"""For post_torrent_updates: none of the figures that cost a walk over all pieces."""


class Transfer:
    """One content that is carried."""

    def __init__(self, command: protocol.Add, handle: Any, pieces: int) -> None:
        self.sha256 = command.sha256
        self.handle = handle
        self.filename = command.filename
        self.whole = command.whole
        """The file was complete when it was added."""
        self.fetching = not command.whole
        """Its completion is still to be told."""
        self.finished = False
        """All pieces are here; what is in memory is being written."""
        self.storage_failed = False
        """Told once: every piece on its way to the disk fails alike."""
        self.peers = 0
        self.pieces = pieces
        self.regroup = False
        """Peers came or went since the pieces were divided."""
        self.members: frozenset[bytes] = frozenset()
        """Peer ids among which the pieces are divided, besides this engine's own."""


class Engine:
    """A libtorrent session under the orders of the parent.

    Args:
        control: connected stream socket to the parent.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.settimeout(SEND_TIMEOUT_S)
        self._frames = protocol.command_decoder()
        self._transfers: dict[str, Transfer] = {}
        self._by_torrent: dict[Any, Transfer] = {}
        self._stopping = False
        self._dirty = False
        """Something may have moved since the last report."""

        self._confined = Session()
        self._session = self._confined.libtorrent

        self._commands: dict[type[Any], Callable[[Any], None]] = {
            protocol.Add: self._add,
            protocol.Remove: self._remove,
            protocol.ConnectPeer: self._connect_peer,
            protocol.Ban: self._ban,
            protocol.SetLimits: self._set_limits,
            protocol.SuperSeed: self._super_seed,
            protocol.Rename: self._rename,
            protocol.Stop: self._stop,
        }
        self._alerts: dict[type[Any], Callable[[Any], None]] = {
            lt.listen_succeeded_alert: self._on_listening,
            lt.torrent_finished_alert: self._on_finished,
            lt.torrent_checked_alert: self._on_checked,
            lt.cache_flushed_alert: self._on_flushed,
            lt.state_update_alert: self._on_progress,
            lt.hash_failed_alert: self._on_hash_failed,
            lt.peer_ban_alert: self._on_ban,
            lt.peer_connect_alert: self._on_connected,
            lt.peer_disconnected_alert: self._on_disconnected,
            lt.file_error_alert: self._on_file_error,
            lt.torrent_error_alert: self._on_torrent_error,
            lt.file_renamed_alert: self._on_renamed,
            lt.file_rename_failed_alert: self._on_rename_failed,
        }

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop or the parent is gone.

        Raises:
            ValueError: the parent sent what is no command; the stream cannot be followed any more.
            OSError: the parent does not take events.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ, self._read_commands)
            selector.register(self._confined.wake, selectors.EVENT_READ, self._read_alerts)
            report_at = 0.0
            while not self._stopping:
                timeout = max(0.0, report_at - time.monotonic()) if self._dirty else None
                for key, _ in selector.select(timeout):
                    key.data()
                now = time.monotonic()
                if self._dirty and now >= report_at:
                    # Answered by a state_update_alert with what has changed; that sets the flag again.
                    self._dirty = False
                    self._divide()
                    self._session.post_torrent_updates(_PLAIN_STATUS)
                    report_at = now + settings.PROGRESS_INTERVAL_S
        self._flush()

    def _read_commands(self) -> None:
        data = self._control.recv(RECEIVE_BYTES)
        if not data:
            self._stopping = True
            return
        for command in self._frames.receive(data):
            self._commands[type(command)](command)

    def _read_alerts(self) -> None:
        for alert in self._confined.alerts():
            handler = self._alerts.get(type(alert))
            if handler is not None:
                handler(alert)

    def _send(self, event: protocol.EngineEvent) -> None:
        self._control.sendall(protocol.encode(event))

    def _fail(self, sha256: str, message: str) -> None:
        self._send(protocol.Failed(sha256=sha256, message=protocol.clip(message)))

    def _flush(self) -> None:
        """Write out what is in memory. What was not written is noticed by the check at the next start."""
        for transfer in self._transfers.values():
            transfer.handle.pause()
            transfer.handle.flush_cache()
        waiting = len(self._transfers)
        end = time.monotonic() + FLUSH_TIMEOUT_S
        while waiting > 0 and (left := end - time.monotonic()) > 0:
            self._session.wait_for_alert(int(left * 1000))
            waiting -= sum(isinstance(alert, lt.cache_flushed_alert) for alert in self._session.pop_alerts())

    # --- commands -------------------------------------------------------------------------------

    def _add(self, command: protocol.Add) -> None:
        if command.sha256 in self._transfers:
            self._fail(command.sha256, "it is carried already")
            return
        try:
            parameters = lt.load_torrent_buffer(command.torrent, settings.TORRENT_CAPS)
            parameters.save_path = command.directory
            parameters.renamed_files = {0: command.filename}
            # Without auto_managed libtorrent neither queues nor resumes it by itself. There is no resume data
            # on purpose: it would be believed after a power cut (arvidn/libtorrent#4974), so what a partial
            # file holds is hashed instead. `seed_mode` takes the parent's word that the file was verified.
            flags = lt.torrent_flags.update_subscribe | lt.torrent_flags.apply_ip_filter
            if command.whole:
                # Should the file turn out to be bad after all, it is not mended: it may be somebody's own.
                flags |= lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
            if command.super_seed:
                flags |= lt.torrent_flags.super_seeding
            parameters.flags = flags
            handle = self._session.add_torrent(parameters)
            pieces = 0 if parameters.ti is None else parameters.ti.num_pieces()
        except RuntimeError as error:
            self._fail(command.sha256, f"the engine does not take the torrent: {error}")
            return
        transfer = Transfer(command, handle, pieces)
        self._transfers[command.sha256] = transfer
        self._by_torrent[handle] = transfer
        self._dirty = True
        self._send(protocol.Added(sha256=command.sha256))

    def _remove(self, command: protocol.Remove) -> None:
        transfer = self._transfers.pop(command.sha256, None)
        if transfer is not None:
            del self._by_torrent[transfer.handle]
            self._session.remove_torrent(transfer.handle)

    def _find(self, sha256: str) -> Transfer | None:
        transfer = self._transfers.get(sha256)
        if transfer is None:
            self._fail(sha256, "it is not carried")
        return transfer

    def _connect_peer(self, command: protocol.ConnectPeer) -> None:
        if transfer := self._find(command.sha256):
            transfer.handle.connect_peer((command.ip, command.port))

    def _ban(self, command: protocol.Ban) -> None:
        self._confined.block(command.ip)

    def _set_limits(self, command: protocol.SetLimits) -> None:
        self._session.apply_settings(
            {"upload_rate_limit": command.upload, "download_rate_limit": command.download}
        )

    def _super_seed(self, command: protocol.SuperSeed) -> None:
        if transfer := self._find(command.sha256):
            flag = lt.torrent_flags.super_seeding
            if command.on:
                transfer.handle.set_flags(flag)
            else:
                transfer.handle.unset_flags(flag)

    def _rename(self, command: protocol.Rename) -> None:
        if transfer := self._find(command.sha256):
            transfer.filename = command.filename
            transfer.handle.rename_file(0, command.filename)

    def _stop(self, command: protocol.Stop) -> None:  # noqa: ARG002  # every handler is called alike
        self._stopping = True

    # --- alerts ---------------------------------------------------------------------------------

    def _transfer(self, alert: Any) -> Transfer | None:
        return self._by_torrent.get(alert.handle)

    def _on_listening(self, alert: Any) -> None:
        # It also opens a UDP socket, on loopback, which nothing here uses.
        if alert.socket_type == lt.socket_type_t.tcp:
            self._send(protocol.Ready(ip=alert.address, port=alert.port))

    def _on_checked(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is not None:
            self._dirty = True
            if transfer.whole and not transfer.handle.status(_PLAIN_STATUS).is_seeding:
                self._not_whole(transfer)

    def _not_whole(self, transfer: Transfer) -> None:
        transfer.handle.pause()  # it has nothing to give, and its peers would come again and again
        self._fail(transfer.sha256, "its file is gone, or is no longer what was verified")

    def _on_finished(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is not None:
            self._dirty = True
            if transfer.fetching:
                transfer.finished = True
                transfer.handle.flush_cache()

    def _on_flushed(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is not None and transfer.finished and transfer.fetching:
            transfer.fetching = False
            self._send(protocol.Completed(sha256=transfer.sha256))

    def _on_progress(self, alert: Any) -> None:
        checking = {
            lt.torrent_status.checking_files,
            lt.torrent_status.checking_resume_data,
        }
        for status in alert.status:
            transfer = self._by_torrent.get(status.handle)
            if transfer is None:
                continue
            transfer.peers = status.num_peers
            self._send(
                protocol.Progress(
                    sha256=transfer.sha256,
                    done=max(0, status.total_done),
                    total=max(0, status.total_wanted),
                    rate_down=max(0, status.download_payload_rate),
                    rate_up=max(0, status.upload_payload_rate),
                    peers=status.num_peers,
                    downloaded=max(0, status.total_payload_download),
                    uploaded=max(0, status.total_payload_upload),
                    checking=status.state in checking,
                )
            )
        self._dirty = any(
            transfer.peers or (transfer.fetching and not transfer.storage_failed)
            for transfer in self._transfers.values()
        )

    def _divide(self) -> None:
        """Divide the pieces anew where the members that are fetching are no longer the same."""
        for transfer in self._transfers.values():
            if not transfer.regroup or not transfer.fetching or transfer.finished:
                continue
            peers = transfer.handle.get_peer_info()
            unknown = lt.peer_info.handshake | lt.peer_info.connecting
            transfer.regroup = any(peer.flags & unknown for peer in peers)
            members = frozenset(
                peer.pid.to_bytes() for peer in peers if not peer.flags & (unknown | lt.peer_info.seed)
            ) - {self._confined.peer_id}
            if members != transfer.members:
                transfer.members = members
                transfer.handle.prioritize_pieces(
                    piece_priorities(transfer.pieces, self._confined.peer_id, members)
                )

    def _on_hash_failed(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is None:
            return
        if transfer.whole:
            self._not_whole(transfer)
        else:
            self._send(protocol.HashFailed(sha256=transfer.sha256, piece=int(alert.piece_index)))

    def _on_ban(self, alert: Any) -> None:
        ip = alert.endpoint[0]
        self._confined.block(ip)  # libtorrent itself bans only this port of it
        if transfer := self._transfer(alert):
            self._send(protocol.Banned(sha256=transfer.sha256, ip=ip))

    def _on_connected(self, alert: Any) -> None:
        if transfer := self._transfer(alert):
            self._dirty = transfer.regroup = True
            ip, port = alert.endpoint
            self._send(protocol.PeerConnected(sha256=transfer.sha256, ip=ip, port=port))

    def _on_disconnected(self, alert: Any) -> None:
        if transfer := self._transfer(alert):
            self._dirty = transfer.regroup = True
            ip, port = alert.endpoint
            message = protocol.clip(alert.error.message())
            self._send(protocol.PeerDisconnected(sha256=transfer.sha256, ip=ip, port=port, message=message))

    def _on_file_error(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is None or transfer.storage_failed:
            return
        transfer.storage_failed = True
        error = alert.error
        system = error.category().name() in {"system", "generic"}
        self._send(
            protocol.StorageFailed(
                sha256=transfer.sha256,
                errno=error.value() if system else 0,
                message=protocol.clip(f"{alert.filename()}: {error.message()}"),
            )
        )

    def _on_torrent_error(self, alert: Any) -> None:
        transfer = self._transfer(alert)
        if transfer is not None and not transfer.storage_failed:
            self._fail(transfer.sha256, alert.error.message())

    def _on_renamed(self, alert: Any) -> None:
        if transfer := self._transfer(alert):
            self._send(protocol.Renamed(sha256=transfer.sha256, filename=transfer.filename))

    def _on_rename_failed(self, alert: Any) -> None:
        if transfer := self._transfer(alert):
            self._fail(transfer.sha256, f"cannot rename: {alert.error.message()}")


def limit_process() -> None:
    """Limit what a peer that takes over or swells this process can take from the device."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit, wanted in (
        (resource.RLIMIT_DATA, settings.MEMORY_BYTES_MAX),
        (resource.RLIMIT_NOFILE, settings.OPEN_FILES_MAX),
    ):
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Run the engine on the socket whose number is the first argument."""
    limit_process()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        try:
            Engine(control).run()
        except ValueError as error:
            sys.exit(f"the control stream cannot be followed: {error}")
        except OSError as error:
            sys.exit(f"the control stream ended: {error}")


if __name__ == "__main__":
    main()
