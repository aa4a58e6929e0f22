"""``driftseed tuf``: the device's updater as a plain TUF client, over real HTTP.

The public conformance suite (theupdateframework/tuf-conformance) drives the same command; this holds its ends.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time as _now

import pytest

from driftseed.core import limits
from driftseed.core.errors import PeerStalled, TransportError
from driftseed.core.model import artifact_target
from driftseed.net.http_source import HttpSource
from driftseed.trust.repository import FleetRepository
from support_cli import Cli
from support_trust import DAY, Thief, add_release, make_fleet


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


class Repository:
    """A fleet directory behind an HTTP server, with a client's directories."""

    def __init__(self, scratch: Path, url: str, cli: Cli) -> None:
        self.fleet: FleetRepository = FleetRepository.open(scratch / "fleet", lambda _: b"", _now)
        self.scratch = scratch
        self.url = url
        self.cli = cli
        (scratch / "root.json").write_bytes(self.fleet.first_root)

    def run(self, *command: str | Path) -> int:
        given: list[str | Path] = [
            "--metadata-dir",
            self.scratch / "client",
            "--metadata-url",
            f"{self.url}/metadata",
        ]
        return self.cli("tuf", *given, *command).code

    def download(self, *targets: str) -> int:
        names = [word for target in targets for word in ("--target-name", target)]
        where: list[str | Path] = [
            "--target-base-url",
            f"{self.url}/targets",
            "--target-dir",
            self.scratch / "got",
        ]
        return self.run(*names, *where, "download")

    @property
    def trusted(self) -> list[str]:
        return sorted(path.name for path in (self.scratch / "client").glob("*.json"))


@pytest.fixture
def repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Repository]:
    add_release(make_fleet(tmp_path / "fleet", _now), tmp_path)
    handler = partial(_Quiet, directory=str(tmp_path / "fleet"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield Repository(tmp_path, f"http://127.0.0.1:{server.server_port}", Cli(capsys))
        finally:
            server.shutdown()
            serving.join()


def test_a_root_is_trusted_then_metadata_then_a_target(repository: Repository) -> None:
    assert repository.run("refresh") == 1
    assert repository.run("init", repository.scratch / "root.json") == 0
    assert repository.trusted == ["root.json"]
    assert repository.run("refresh") == 0
    assert repository.trusted == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    target = "fleet/enrolment.json"
    assert repository.download(target) == 0
    assert (repository.scratch / "got" / "fleet%2Fenrolment.json").read_bytes().startswith(b"{")
    assert repository.download("fleet/nothing.json") == 1


def test_a_target_that_is_not_the_signed_one_is_not_kept(repository: Repository) -> None:
    repository.run("init", repository.scratch / "root.json")
    (release,) = repository.fleet.releases()
    (artifact,) = release.manifest.artifacts
    path = artifact_target("app", "1.0", artifact)
    served = (
        repository.scratch
        / "fleet"
        / "targets"
        / "releases/app/1.0"
        / f"{artifact.sha256}.{path.rpartition('/')[2]}"
    )
    served.write_bytes(b"x" * artifact.length)
    assert repository.download(path) == 1
    assert not (repository.scratch / "got").exists()
    served.write_bytes(b"x" * (artifact.length + 1))
    assert repository.download(path) == 1
    served.write_bytes(b"app 1.0")
    assert repository.download(path) == 0


def test_unsigned_expired_and_missing_metadata_is_refused_with_exit_code_1(repository: Repository) -> None:
    repository.run("init", repository.scratch / "root.json")
    assert repository.run("--days-in-future", str(40 * DAY / DAY), "refresh") == 1
    assert repository.trusted == ["root.json"]
    thief = Thief(repository.fleet, sign_as={"snapshot": "releases"})
    for name, data in thief.publish({"fleet": lambda targets: targets.targets.clear()}).items():
        (repository.scratch / "fleet" / name).write_bytes(data)
    assert repository.run("refresh") == 1
    assert "snapshot.json" not in repository.trusted
    (repository.scratch / "fleet" / "metadata" / "timestamp.json").unlink()
    assert repository.run("refresh") == 1
    assert repository.run("init", repository.scratch / "nothing.json") == 1


def test_a_server_that_trickles_is_left(tmp_path: Path) -> None:
    """Slow retrieval: by a clock that is moved, bytes that come now and then are not an answer."""
    ticks = iter(range(0, 10_000, 7))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                try:
                    for _ in range(100_000):
                        connection.sendall(b"x")
                except OSError:
                    return

        serving = threading.Thread(target=serve)
        serving.start()
        source = HttpSource(lambda: float(next(ticks)) * 1000)
        with pytest.raises(PeerStalled, match="too slow"):
            source.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/x", 100_000)
        serving.join()
    with pytest.raises(TransportError, match="cannot be fetched"):
        HttpSource().fetch("http://127.0.0.1:1/x", 10)


@pytest.mark.parametrize("missing", [0, 1])
def test_the_rate_that_an_answer_must_keep(missing: int) -> None:
    """A second after the time that it may be silent: one second's bytes are enough, one fewer are not."""
    body = b"x" * (int(limits.HTTP_RATE_MIN) - missing)
    times = iter([0.0])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        serving = threading.Thread(target=serve)
        serving.start()
        source = HttpSource(lambda: next(times, limits.READ_TIMEOUT_S + 1.0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        if missing:
            with pytest.raises(PeerStalled, match="1023 bytes in 21 s is too slow"):
                source.fetch(url, 100_000)
        else:
            assert source.fetch(url, 100_000) == body
        serving.join()
