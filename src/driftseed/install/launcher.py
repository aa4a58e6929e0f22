"""Run one command so that all of it can be ended: ``launcher.py LOCK COMMAND [ARGUMENT …]``.

The agent starts this file as a process of its own for every call of an update module or health check
(``python -I -S``: standard library only, nothing from the environment). It is there because the things that
make a process tree killable must be set up between fork and exec, which a program with threads cannot do
safely, and because someone must be left to end the tree when the agent itself is killed:

- As a *subreaper* (prctl(2)) it inherits whatever a module starts and abandons, also by ``setsid`` or a double
  fork. So ``descendants`` finds all of them, and having no child left means that none is left.
- Its standard input is a pipe that the agent holds. At its end, that is when the agent closes it or dies,
  everything is killed. SIGKILL at once: a module must be able to stand a power cut anyway.
- ``LOCK`` is held for as long as the tree lives, so that the next call (of an agent started anew) waits for
  the end of this one. The file names the call by the value of ``DRIFTSEED_CALL``; if it still does when the
  lock is free, this process was killed, and the next one ends all processes that carry that value in
  their environment before it begins.

No new privileges (no setuid), no core dumps, a umask of 022, and a session of its own apply to the command.
Processes that outlive a command that ended by itself are left alone: a module may start a service.

The exit status goes to the file descriptor ``DRIFTSEED_STATUS_FD``, in decimal: negative for a signal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
import sys

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_LOOK_AGAIN_MS = 10
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells have it


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def descendants(ancestor: int) -> set[int]:
    """Process ids of all children, their children, and so on (from /proc; zombies included)."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        # The command name, in parentheses, may hold anything; the parent is the second field after it.
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    pending = [ancestor]
    while pending:
        for child in children.get(pending.pop(), []):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def marked(call: str) -> set[int]:
    """Process ids of those whose environment says that they belong to a call."""
    wanted = f"DRIFTSEED_CALL={call}".encode()
    return {
        pid
        for pid in _processes()
        if pid != os.getpid() and wanted in _read(f"/proc/{pid}/environ").split(b"\0")
    }


def _processes() -> list[int]:
    # Not pathlib: to import it takes longer than everything else that this program does.
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - see above


def _read(path: str) -> bytes:
    """A file of /proc; nothing when the process ended meanwhile, or is another user's."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see _processes
            return file.read()
    except OSError:
        return b""


def _kill(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _reap() -> dict[int, int]:
    """Wait statuses of all children that have ended.

    Raises:
        ChildProcessError: there is no child left, so no descendant either.
    """
    ended: dict[int, int] = {}
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return ended
        ended[pid] = status
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ended


def _kill_all(wakeup: select.poll) -> None:
    """Kill until no descendant is left: what is forked while we look is found the next time."""
    try:
        while True:
            _kill(descendants(os.getpid()))
            _reap()
            wakeup.poll(_LOOK_AGAIN_MS)
    except ChildProcessError:
        return


def _take_lock(path: str, control: select.poll) -> int | None:
    """The lock's descriptor once no other call is under way; None when the agent went meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if control.poll(_LOOK_AGAIN_MS):
                return None
            continue
        break
    unclean = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
    while unclean and (left := marked(unclean)):
        _kill(left)
        if control.poll(_LOOK_AGAIN_MS):
            return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, os.environ["DRIFTSEED_CALL"].encode("ascii"), 0)
    return descriptor


def _become(command: list[str], parent: int, status_fd: int) -> None:
    """In the child: turn into the command. Does not return."""
    try:
        os.close(status_fd)
        os.setsid()
        # Not inherited by its children, but then the next call looks for those by their mark.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # Python ignores SIGPIPE, and that would be inherited
        if os.getppid() == parent:
            os.execvp(command[0], command)  # noqa: S606 - running it is what this program is for
    except FileNotFoundError:
        # The command, or the interpreter that its first line names.
        os.write(2, f"cannot start {command[0]}: no such file, or its interpreter is missing\n".encode())
        os._exit(_NOT_FOUND)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(_NOT_EXECUTABLE)


def _ignore(_number: int, _frame: object) -> None:
    """So that SIGCHLD wakes ``poll`` up through the wakeup descriptor."""


def main(lock_path: str, command: list[str]) -> int:
    """Run the command to its end, or to the agent's."""
    status_fd = int(os.environ.pop("DRIFTSEED_STATUS_FD"))
    os.set_inheritable(status_fd, False)
    control_fd = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    control = select.poll()
    control.register(control_fd, select.POLLIN)

    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)

    lock = _take_lock(lock_path, control)
    if lock is None:
        return 0

    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    wakeup = select.poll()
    wakeup.register(woken, select.POLLIN)
    both = select.poll()
    both.register(woken, select.POLLIN)
    both.register(control_fd, select.POLLIN)

    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, parent, status_fd)
    # The agent sees the end of the output when the command's processes have closed it, not when we have.
    os.dup2(null, 1)
    os.dup2(null, 2)

    while True:
        ready = {descriptor for descriptor, _ in both.poll()}
        if woken in ready:
            os.read(woken, 512)
            ended = _reap()
            if child in ended:
                os.ftruncate(lock, 0)
                os.write(status_fd, str(os.waitstatus_to_exitcode(ended[child])).encode("ascii"))
                return 0
        if control_fd in ready:
            _kill_all(wakeup)
            os.ftruncate(lock, 0)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
