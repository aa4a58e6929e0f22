"""Unix sockets that only their owner may connect to: the agent's local API and the hub's."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from driftseed.core.errors import AlreadyRunning, DeviceError

SOCKET_PATH_BYTES_MAX: Final = 107
"""Bytes of a Unix socket's path: sun_path has 108 with the final zero (unix(7))."""
_BACKLOG: Final = 128


def bind_socket(path: Path) -> socket.socket:
    """A Unix socket that listens at a path which only its owner may connect to, at any moment.

    A socket that nobody listens at any more (its process was killed) is replaced. Two processes that start
    at the same moment are kept apart by the data directory's lock, not here.

    Raises:
        AlreadyRunning: a living process listens there.
        DeviceError: the path is too long, is taken by something else, or cannot be made.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise DeviceError(
            f"the path of the socket has more than {SOCKET_PATH_BYTES_MAX} bytes: {path}",
            hint="choose a data directory with a shorter path",
        )
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the file takes the mode of the unbound socket (less the umask): it is never wider than
        # this. Elsewhere chmod does it; until listen() the kernel refuses connections in any case.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(f"another process has just taken {path}") from None
        raise DeviceError(f"cannot listen at {path}: {error.strerror}") from error
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(f"cannot listen at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise DeviceError(f"{path} exists and is not a socket", hint="move it away, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not blocking: a living process whose backlog is full is alive (EAGAIN), not stale.
        probe.setblocking(False)
        result = probe.connect_ex(os.fspath(path))
    if result not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise AlreadyRunning(
            f"another process listens at {path}",
            hint="stop that one first, or choose another data directory",
        )
    path.unlink(missing_ok=True)


def remove_socket(path: Path, inode: int) -> None:
    """Remove a socket's file, unless a successor has put its own in its place meanwhile.

    Args:
        path: of the socket.
        inode: of the one that is to go.
    """
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()
