"""What takes more than a function call: the local API on its real socket, and archives unpacked on a real disk."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from driftseed.agent.api import routes
from driftseed.agent.localhttp import LocalServer
from driftseed.agent.submissions import Submissions
from driftseed.core.errors import DiskFull, ModuleFailed
from driftseed.install.modules.unpack import unpack
from support_agent import DEPLOYMENT, MadeUpAgent, TrustingTaker
from support_trust import FakeClock, add_release, make_fleet
from target import Finding, Target, Try, promise

SUBMISSION = "5" * 32
_ANSWER_S = 20.0
_BYTES_MAX = 1 << 20
_ENTRIES_MAX = 64


class _Faults(logging.Handler):
    """What the server logs as a fault of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class _Served:
    """A server with the agent's real routes and real submissions."""

    def __init__(self, scratch: Path) -> None:
        clock = FakeClock()
        repository = make_fleet(scratch / "fleet", clock)
        add_release(repository, scratch)
        self.loop = asyncio.new_event_loop()
        self.faults = _Faults()
        logging.getLogger().addHandler(self.faults)
        taker = TrustingTaker(scratch / "taker", repository.first_root, clock)
        self.submissions = Submissions(scratch, taker, new_id=lambda: SUBMISSION)
        # A socket's path may have 107 bytes, and the scratch directory is anywhere.
        self.socket = Path(tempfile.mkdtemp(prefix="dsf-")) / "s"
        agent = MadeUpAgent(scratch)
        self.server = LocalServer(
            self.socket, routes(agent, self.submissions), dropped=lambda _: None, request_timeout_s=5.0
        )
        self.loop.run_until_complete(self.server.start())

    def one(self, data: bytes) -> None:
        answer = self.loop.run_until_complete(self._exchange(data))
        promise(b"HTTP/1.1 500" not in answer, f"an internal error: {answer[:300]!r}")
        if self.faults.seen:
            raise Finding("\n".join(self.faults.seen))

    async def _exchange(self, data: bytes) -> bytes:
        """Send an input, end, and read all answers."""
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(os.fspath(self.socket))
            answer = b""
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                writer.write(data)
                writer.write_eof()
                answer = await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                await writer.wait_closed()
            # The server tells nobody that it has let go of a client.
            while self.server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await self.submissions.close()
        return answer


def _local_api(scratch: Path) -> Try:
    return _Served(scratch).one


def _api_seeds() -> Iterator[bytes]:
    def request(line: str, body: bytes = b"", headers: str = "") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return f"{line} HTTP/1.1\r\nHost: x\r\n{length}{headers}\r\n".encode("latin-1") + body

    begin = request("POST /v1/submit")
    yield request("GET /v1/status") + request("GET /v1/peers") + request("GET /v1/metrics")
    yield request(f"GET /v1/updates/{DEPLOYMENT}")
    yield request(f"DELETE /v1/updates/{DEPLOYMENT}")
    yield request("PATCH /v1/config", b'{"upload_limit_bytes_s": 5}')
    yield request("PATCH /v1/config", b'{"listen": "x"}')
    yield request("POST /v1/announce")
    yield begin + request(f"PUT /v1/submit/{SUBMISSION}/files/metadata/timestamp.json", b"{}")
    yield begin + request(f"PUT /v1/submit/{SUBMISSION}/content/{'5e' * 32}", b"x")
    yield begin + request(f"POST /v1/submit/{SUBMISSION}/commit")
    yield begin + request(f"GET /v1/submit/{SUBMISSION}") + request(f"DELETE /v1/submit/{SUBMISSION}")
    yield begin + request(
        f"PUT /v1/submit/{SUBMISSION}/files/metadata/1.root.json",
        b"5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n",
    ).replace(b"Content-Length: 15\r\n", b"")
    yield request("PATCH /v1/config", b"{}", "Expect: 100-continue\r\n")
    yield request("HEAD /v1/status")
    yield request("GET http://[::1/v1/status")
    yield request("GET /v1/%ff")
    yield request("PUT /v1/submit/%2e%2e/files/metadata/..%2f..%2fx", b"x")
    yield b"GET / HTTP/9.9\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00"
    yield b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"
    yield b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 3000


def _archives(scratch: Path) -> Try:
    archive, target, outside = scratch / "archive", scratch / "target", scratch / "outside"
    outside.write_bytes(b"untouched")

    def one(data: bytes) -> None:
        archive.write_bytes(data)
        target.mkdir()
        try:
            with contextlib.suppress(ModuleFailed, DiskFull, OSError):
                unpack(archive, target, bytes_max=_BYTES_MAX, entries_max=_ENTRIES_MAX)
            _look(target)
            promise(outside.read_bytes() == b"untouched", "a file outside was written")
            promise({each.name for each in scratch.iterdir()} == NAMES, "something was made outside")
        finally:
            shutil.rmtree(target)

    return one


NAMES = {"archive", "target", "outside"}


def _look(target: Path) -> None:
    """What was unpacked keeps its promises, also when unpacking was given up in the middle."""
    total = 0
    for path in target.rglob("*"):
        status = path.lstat()
        promise(not status.st_mode & 0o6000, "set-user-id")
        promise(path.is_symlink() or path.is_dir() or path.is_file(), "a special file")
        total += status.st_size if path.is_file() and not path.is_symlink() else 0
        promise(path.parent.resolve().is_relative_to(target.resolve()), "a file that is reached from outside")
    promise(total <= _BYTES_MAX, "more bytes than are allowed")


def _archive_seeds() -> Iterator[bytes]:
    def tar(mode: str, *members: tuple[str, bytes, str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as packed:  # type: ignore[call-overload]  # a mode in a variable
            for name, kind, link, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size, info.mtime = kind, link, len(content), 1.5
                packed.addfile(info, io.BytesIO(content))
        return out.getvalue()

    file, link, hard, directory = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
    yield tar("w", ("d", directory, "", b""), ("d/f", file, "", b"content"), ("l", link, "d/f", b""))
    yield tar("w", ("../outside", file, "", b"x"))
    yield tar("w", ("l", link, "..", b""), ("l/outside", file, "", b"x"))
    yield tar("w", ("f", file, "", b"x"), ("h", hard, "f", b""), ("f", file, "", b"y"))
    yield tar("w", ("a", link, "b", b""), ("b", link, "a/..", b""))
    yield tar("w", ("dev", tarfile.CHRTYPE, "", b""))
    yield tar("w:gz", ("f", file, "", bytes(2_000_000)))
    yield tar("w:xz", ("f", file, "", b"x"))
    yield tar("w:bz2", ("f", file, "", b"x"))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as packed:
            packed.writestr(zipfile.ZipInfo("d/f"), b"content")
            made = zipfile.ZipInfo("l")
            made.external_attr = 0o120777 << 16
            packed.writestr(made, "d/f")
        yield out.getvalue()


TARGETS: dict[str, Target] = {
    "local-api": Target(_local_api, _api_seeds),
    "archives": Target(_archives, _archive_seeds, 32_768),
}
