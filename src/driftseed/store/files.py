"""Files that survive a power cut: the only module that renames.

A file is either what it was or what it was to become, whenever the power goes. That takes three steps in
this order: the new bytes reach the disk (fsync), the name moves to them (rename, atomic within one file
system), and the directory that holds the name reaches the disk (fsync). POSIX promises no more than that
a rename is atomic for readers; that it is durable after the directory's fsync is what Linux file systems do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from driftseed.core.errors import AlreadyRunning, DiskFull, NotFound, UnsafePermissions, WouldOverwrite

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SECRET_MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_LOCK_NAME: Final = "lock"
_GIVEN_OPEN: Final = frozenset({"/dev/fd", "/proc/self/fd"})
"""Where a shell's ``<(command)`` leads: to a descriptor that whoever started this process has opened."""
_TEMPORARY: Final = ".new-"
"""How the name of a file that is not finished begins: a leftover of a power cut can be told by it."""


@contextlib.contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Raise DiskFull, which says what to do, where the system says ENOSPC or EDQUOT.

    Args:
        path: what was being written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left for {path}: {error.strerror}",
                hint="free some space on this file system; it is tried again",
            ) from error
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that it is the old or the new one at any instant, and the new one on return.

    Args:
        path: the file; its directory must exist. A symbolic link at this place is replaced, not followed.
        data: the whole content.
        mode: permission bits of the file, whatever the umask says.

    Raises:
        DiskFull: nothing changed, and nothing was left behind.
        OSError: likewise.
    """
    with disk_full_as_error(path):
        temporary = path.with_name(f"{_TEMPORARY}{os.urandom(8).hex()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _SECRET_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # Also on cancellation and KeyboardInterrupt: the temporary file has no other owner.
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def adopt(source: Path, target: Path) -> None:
    """Give a finished file its final name, durably.

    Args:
        source: a file that nobody writes to any more; it has this name no longer afterwards.
        target: a name on the same file system; what is there is replaced.

    Raises:
        DiskFull: the bytes did not reach the disk; ``source`` is still there.
        OSError: likewise, such as EXDEV for another file system.
    """
    with disk_full_as_error(target):
        with source.open("rb") as file:
            os.fsync(file.fileno())
        source.replace(target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)


def rename_directory(source: Path, target: Path) -> None:
    """Give a directory another name beside its own, durably. What is in it must be on the disk already.

    Raises:
        OSError: the target is there and not an empty directory, or the rename failed: nothing changed.
    """
    source.replace(target)
    sync_directory(target.parent)


def replace_link(link: Path, target: str) -> None:
    """Let a symbolic link point elsewhere: readers find the old or the new target at any instant.

    Args:
        link: what has this name is replaced, whatever it is, unless it is a directory.
        target: what it says; relative to the link's directory or absolute; need not exist.

    Raises:
        DiskFull: no space for the link; the old one is still there.
        OSError: likewise.
    """
    with disk_full_as_error(link):
        unfinished = link.with_name(f".{link.name}.switch")
        unfinished.unlink(missing_ok=True)  # of an earlier time, when the power went
        unfinished.symlink_to(target)
        unfinished.replace(link)
        sync_directory(link.parent)


def remove_unfinished(directory: Path) -> list[Path]:
    """Remove what ``atomic_write`` was at when the power went.

    Only the owner of a directory may call it, holding its lock: another process's unfinished file looks
    the same.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(directory.glob(f"{_TEMPORARY}*")):
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def write_secret(path: Path, data: bytes) -> None:
    """``atomic_write`` with permissions 0600. The file is never readable by others, not even unfinished."""
    atomic_write(path, data, mode=_SECRET_MODE)


def create_secret(path: Path, data: bytes) -> None:
    """Write a file with permissions 0600 where nothing is yet; a symbolic link is something.

    After a power cut a part of it may be there: it is for files that a person has just asked for.

    Raises:
        WouldOverwrite: something has this name.
        NotFound: its directory does not exist.
        DiskFull: nothing was left behind.
        OSError: likewise.
    """
    with disk_full_as_error(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _SECRET_MODE)
        except FileExistsError:
            raise WouldOverwrite(
                f"there is {path} already", hint="choose another name, or remove it first"
            ) from None
        except FileNotFoundError:
            raise NotFound(f"there is no directory {path.parent}", hint="make it first") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)  # a part of a secret is of use to nobody
            raise
        sync_directory(path.parent)


def read_secret(path: Path, *, size: int = -1) -> bytes:
    """Read a file that only its owner may read.

    Type, owner and permissions are those of the file that is read, not of what had its name a moment before. A
    symbolic link is refused: whoever may write to its directory chooses what is read through it. Root may be
    handed files of the user who called ``sudo``, and of nobody else.

    Args:
        path: the file, or a descriptor such as ``/dev/fd/63``.
        size: bytes that are read at most; -1 for all.

    Raises:
        UnsafePermissions: group or others may read or write it, it is another user's, or no regular file.
        NotFound: there is no such file.
        OSError: it cannot be read.
    """
    given_open = str(path.parent) in _GIVEN_OPEN
    # Not blocking: whoever puts a pipe in the place of the file must not hold its reader up for ever.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if given_open else os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafePermissions(
                f"{path} is a symbolic link: who can change it chooses what is read",
                hint="name the file itself",
            ) from None
        raise
    try:
        _check_secret(path, os.fstat(descriptor), given_open=given_open)
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        return file.read(size)


def _check_secret(path: Path, status: os.stat_result, *, given_open: bool) -> None:
    """Raise UnsafePermissions, or IsADirectoryError, unless it is a file for its owner alone."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode) and not given_open:
        raise UnsafePermissions(f"{path} is not a regular file", hint="name a regular file")
    if status.st_uid not in _trusted_owners():
        raise UnsafePermissions(
            f"{path} belongs to another user (id {status.st_uid})",
            hint=f"chown {os.geteuid()} {path}, if what is in it is yours",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise UnsafePermissions(
            f"{path} can be read or written by others (mode {mode:04o})",
            hint=f"chmod 600 {path}",
        )


def _trusted_owners() -> set[int]:
    """Users whose files may be taken for one's own: oneself, root, and who became root by ``sudo``."""
    owners = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdigit():
        owners.add(int(caller))
    return owners


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write to the file system of ``path`` (root's reserve excluded)."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class DirectoryLock:
    """One process at a time for a directory: an advisory lock on ``directory/lock``.

    The kernel drops it when the process ends, however it ends. The file stays: removing it would let two
    processes lock two different files of the same name.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK_NAME
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            AlreadyRunning: another process (or another object of this one) has it.
            RuntimeError: this object has it.
            OSError: the file cannot be made.
        """
        if self._descriptor is not None:
            raise RuntimeError(f"{self._path} is locked already by this object")
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _SECRET_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"{self._path.parent} is in use by another process"
                + (f" ({owner})" if owner.isdigit() else ""),
                hint="stop that one first, or choose another data directory",
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # For people and the message above; the lock itself is the kernel's, and holds on a full disk too.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
