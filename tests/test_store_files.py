"""Files that survive a power cut, a full disk and a second process."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core.errors import AlreadyRunning, DiskFull, NotFound, UnsafePermissions
from driftseed.store import files


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_atomic_write_replaces_whole_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.atomic_write(path, b"one", mode=0o640)
    files.atomic_write(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["a"]


def test_atomic_write_replaces_a_symbolic_link_instead_of_following_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "a").symlink_to(victim)
    files.atomic_write(tmp_path / "a", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()


def test_atomic_write_that_cannot_rename_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        files.atomic_write(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_disk_full_while_writing_keeps_the_old_file_and_no_leftover(small_disk: Path) -> None:
    path = small_disk / "a"
    files.atomic_write(path, b"old")
    with pytest.raises(DiskFull, match="no space left") as caught:
        files.atomic_write(path, b"x" * 200_000)
    assert caught.value.reason == "disk-full"
    assert caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["a"]
    files.atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def test_only_a_full_disk_becomes_disk_full(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(DiskFull), files.disk_full_as_error(tmp_path):
            raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), files.disk_full_as_error(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_kill_at_any_moment_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """SIGKILL while a loop writes: what is read is one whole write, never a mixture."""
    path = tmp_path / "a"
    program = (
        "import sys; from pathlib import Path; from driftseed.store.files import atomic_write\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; atomic_write(Path(sys.argv[1]), (b'%d ' % n) * 5000); print(n, flush=True)\n"
    )
    last = 0
    for rounds in (1, 3, 7, 12):
        process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as out:
            for _ in range(rounds):
                last = int(out.readline())
            process.kill()
            process.wait()
            # What it still said before it died counts too.
            for line in out:
                last = int(line)
        words = path.read_bytes().split()
        assert len(words) == 5000
        assert len(set(words)) == 1
        assert int(words[0]) in {last, last + 1}
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["a"]


def test_remove_unfinished_removes_only_what_atomic_write_was_at(tmp_path: Path) -> None:
    (tmp_path / ".new-abc").write_bytes(b"half")
    (tmp_path / "kept").write_bytes(b"whole")
    assert files.remove_unfinished(tmp_path) == [tmp_path / ".new-abc"]
    assert names(tmp_path) == ["kept"]


def test_adopt_moves_a_finished_file(tmp_path: Path) -> None:
    source, target = tmp_path / "x.unverified", tmp_path / "d" / "x"
    target.parent.mkdir()
    source.write_bytes(b"content")
    target.write_bytes(b"older")
    files.adopt(source, target)
    assert target.read_bytes() == b"content"
    assert not source.exists()


def test_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    files.write_secret(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.read_secret(path) == b"secret"
    for mode in (0o640, 0o604, 0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(UnsafePermissions) as caught:
            files.read_secret(path)
        assert caught.value.hint == f"chmod 600 {path}"
    with pytest.raises(NotFound):
        files.read_secret(tmp_path / "none")


def test_free_bytes_is_below_what_the_disk_has(tmp_path: Path) -> None:
    assert 0 < files.free_bytes(tmp_path) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_a_second_process_cannot_use_the_directory(tmp_path: Path) -> None:
    lock = files.DirectoryLock(tmp_path)
    lock.acquire()
    assert lock.held
    with pytest.raises(RuntimeError):
        lock.acquire()
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        files.DirectoryLock(tmp_path).acquire()
    program = (
        "import sys; from pathlib import Path; from driftseed.store.files import DirectoryLock\n"
        "from driftseed.core.errors import AlreadyRunning\n"
        "try: DirectoryLock(Path(sys.argv[1])).acquire()\n"
        "except AlreadyRunning: sys.exit(79)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 79
    lock.release()
    lock.release()
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 0


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from driftseed.store.files import DirectoryLock\n"
        "lock = DirectoryLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning):
            files.DirectoryLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
    lock = files.DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        lock = files.DirectoryLock(tmp_path)
        lock.acquire()
        for _ in range(100):
            files.atomic_write(tmp_path / "a", b"x")
            files.sync_directory(tmp_path)
            with pytest.raises(AlreadyRunning):
                files.DirectoryLock(tmp_path).acquire()
        lock.release()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
