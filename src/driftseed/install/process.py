"""Run a command with a time limit, all of it: what it starts ends with it when it must end.

The half in the agent; the other half is ``launcher.py``, which says how.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from driftseed.core import limits

_LAUNCHER: Final = Path(__file__).with_name("launcher.py")
_READ_BYTES: Final = 64 * limits.KIB
_READS_AT_ONCE: Final = 4
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def scrubbed_environment(values: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a module: a fixed PATH and LANG, and ours. Nothing of the agent's own."""
    return {"PATH": _PATH, "LANG": "C.UTF-8", **values}


class Tail:
    """The last bytes of an output of any length.

    Args:
        limit: bytes that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.dropped = 0
        """Bytes that were read and not kept."""

    def add(self, data: bytes) -> None:
        """Keep it, and drop from the front what is too much."""
        self._kept += data
        excess = len(self._kept) - self._limit
        if excess > 0:
            del self._kept[:excess]
            self.dropped += excess

    @property
    def text(self) -> str:
        """What was kept; bytes that are not UTF-8 are shown as escapes."""
        return self._kept.decode("utf-8", "backslashreplace").strip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    status: int | None
    """Its exit status, negative for a signal; None: it took too long, and all of it was killed."""
    stdout: str
    """The end of its standard output."""
    output: str
    """The end of standard output and standard error together, as they came."""


async def run(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    lock: Path,
) -> Outcome:
    """Run a command to its end, or to the end of its time.

    It starts once no other command with the same lock is under way, one of an agent that was killed
    included. When the caller is cancelled, the command and all that it started are killed first.

    Args:
        command: program and arguments; a name without a slash is looked up in PATH.
        directory: where it runs; it must exist.
        environment: all of its environment.
        timeout_s: seconds that it may take, waiting for the lock included.
        lock: see ``launcher.py``.

    Raises:
        OSError: no process can be started.
    """
    with _Running(command, directory, environment, lock) as running:
        try:
            await asyncio.wait_for(running.ended.wait(), timeout_s)
        except TimeoutError:
            await running.kill()
            return Outcome(None, running.stdout.text, running.output.text)
        except asyncio.CancelledError:
            await running.kill()
            raise
        return Outcome(running.status, running.stdout.text, running.output.text)


class _Running:
    """A launcher and its pipes. Left, nothing of it runs and no descriptor is open."""

    def __init__(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], lock: Path
    ) -> None:
        self.stdout = Tail(limits.MODULE_OUTPUT_BYTES_MAX)
        self.output = Tail(limits.MODULE_OUTPUT_BYTES_MAX)
        self.ended = asyncio.Event()
        self._status = bytearray()
        self._loop = asyncio.get_running_loop()
        self._readers: dict[int, tuple[Tail, ...]] = {}
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our interpreter, our file
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(lock), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=directory,
                env={
                    **environment,
                    "DRIFTSEED_CALL": secrets.token_hex(16),
                    "DRIFTSEED_STATUS_FD": str(status_write),
                },
                pass_fds=(status_write,),
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(status_read)
            raise
        finally:
            os.close(status_write)
        self._status_fd = status_read

    def __enter__(self) -> Self:
        os.set_blocking(self._status_fd, False)
        self._loop.add_reader(self._status_fd, self._read_status)
        for pipe, tails in (
            (self._process.stdout, (self.stdout, self.output)),
            (self._process.stderr, (self.output,)),
        ):
            if pipe is None:
                raise RuntimeError("a process without the pipes that were asked for")
            os.set_blocking(pipe.fileno(), False)
            self._readers[pipe.fileno()] = tails
            self._loop.add_reader(pipe.fileno(), self._read, pipe.fileno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only when kill() was given no time to end: the next call ends what is left, by its mark.
        if not self.ended.is_set():
            self._process.kill()
        for descriptor in list(self._readers):
            self._read(descriptor)  # what came last; whoever still holds the other end is not waited for
            self._loop.remove_reader(descriptor)
        self._loop.remove_reader(self._status_fd)
        os.close(self._status_fd)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    @property
    def status(self) -> int:
        """The command's exit status; that of a launcher which was itself killed, as far as known."""
        return int(self._status) if self._status else -9

    async def kill(self) -> None:
        """End all of it, within ``limits.KILL_TIMEOUT_S``."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self.ended.wait(), limits.KILL_TIMEOUT_S)
        except TimeoutError:
            # Something cannot be killed, such as a process that waits for a dead disk.
            self._process.kill()

    def _read_status(self) -> None:
        data = os.read(self._status_fd, 64)
        self._status += data
        if not data:  # the launcher has ended
            self._loop.remove_reader(self._status_fd)
            self.ended.set()

    def _read(self, descriptor: int) -> None:
        # Not until there is nothing left: whoever writes without end must not keep the loop to itself.
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(descriptor)
                self._readers.pop(descriptor, None)
                return
            for tail in self._readers[descriptor]:
                tail.add(data)
