"""The hub's API (docs/api.md): for its owner on a Unix socket, for holders of its token over HTTP.

There are no cookies, no redirects and no cross-origin permissions: a browser that was led astray can ask, but
has no token to send and may not read the answer.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from aiohttp import web

from driftseed.core import limits
from driftseed.core.apierrors import error_object, http_status, internal_error_object
from driftseed.core.apiviews import HubStatus, PeerView
from driftseed.core.errors import DriftseedError, Misuse, NotFound, RequestRefused
from driftseed.hub.views import DeploymentView, DeviceView
from driftseed.node.unixsocket import bind_socket, remove_socket
from driftseed.store.files import read_secret, write_secret

_log = logging.getLogger(__name__)

TOKEN_FILE: Final = "api-token"  # noqa: S105 - a file's name
TOKEN_BYTES: Final = 32
"""Random bytes of a token that the hub makes."""
FAILURES_MAX: Final = 10
"""Wrong tokens from one address within ``FAILURES_WINDOW_S``, after which it is not listened to."""
FAILURES_WINDOW_S: Final = 60.0
FAILURE_ADDRESSES_MAX: Final = 4096
"""Addresses whose wrong tokens are remembered; the longest ago goes first."""
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SHUTDOWN_S: Final = 1.0
"""Seconds that requests under way get to end when the hub closes."""

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HubControl(Protocol):
    """What a running hub can be asked."""

    async def status(self) -> HubStatus:
        """How it does."""
        ...

    async def devices(self) -> Sequence[DeviceView]:
        """Every device it knows."""
        ...

    async def deployments(self) -> Sequence[DeploymentView]:
        """Every deployment in force."""
        ...

    async def peers(self) -> Sequence[PeerView]:
        """Its connections."""
        ...

    async def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        ...


class Unauthorised(RequestRefused):
    """No token, or a wrong one."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, status=401, hint=f"send 'Authorization: Bearer TOKEN' with the hub's {TOKEN_FILE}"
        )


def load_token(directory: Path) -> str:
    """The hub's API token; one is made when there is none.

    Args:
        directory: the hub's data directory.

    Raises:
        UnsafePermissions: others can read it.
        Misuse: the file holds no usable token.
        DiskFull: it cannot be made.
    """
    path = directory / TOKEN_FILE
    try:
        data = read_secret(path)
    except NotFound:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        write_secret(path, token.encode() + b"\n")
        return token
    text = data.decode("ascii", "replace").strip()
    if len(text) < 16 or len(text) > 1024 or not text.isascii() or not text.isprintable() or " " in text:
        raise Misuse(
            f"{path} holds no usable token",
            hint="one line of 16 to 1024 characters without spaces; remove the file for a new one",
        )
    return text


class TokenGuard:
    """Lets requests with the token through, and bounds how fast it can be guessed.

    Args:
        token: what must be shown.
        monotonic: seconds.
    """

    def __init__(self, token: str, monotonic: Callable[[], float]) -> None:
        self._token = token.encode()
        self._monotonic = monotonic
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str, authorization: str | None) -> None:
        """Check one request.

        Args:
            address: where it comes from.
            authorization: its header, if it has one.

        Raises:
            RequestRefused: too many wrong tokens from there (status 429), whatever this one is.
            Unauthorised: no token, or a wrong one.
        """
        now = self._monotonic()
        recent = [at for at in self._failures.get(address, ()) if now - at < FAILURES_WINDOW_S]
        if len(recent) >= FAILURES_MAX:
            raise RequestRefused(
                "too many wrong tokens from this address",
                status=429,
                hint=f"try again in {recent[0] + FAILURES_WINDOW_S - now:.0f} s",
            )
        if authorization is None:
            raise Unauthorised("this needs a token")
        scheme, _, given = authorization.partition(" ")
        # Compared as bytes: hmac takes no other than ASCII text, and a header may hold anything.
        right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if scheme.lower() == "bearer" and right:
            self._failures.pop(address, None)
            return
        self._failures[address] = [*recent, now]
        self._failures.move_to_end(address)
        if len(self._failures) > FAILURE_ADDRESSES_MAX:
            self._failures.popitem(last=False)
        raise Unauthorised("this is not the token")


def owner_app(control: HubControl) -> web.Application:
    """The API for a Unix socket of mode 0600: whoever may connect may ask. Paths begin with ``/v1/``."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=limits.API_BODY_BYTES_MAX)
    _add_routes(app, control)
    return app


def token_app(control: HubControl, guard: TokenGuard) -> web.Application:
    """The API for TCP, to be mounted at ``/api/`` beside the relay. Paths begin with ``/v1/``."""

    @web.middleware
    async def guarded(request: web.Request, handler: _Handler) -> web.StreamResponse:
        guard.check(request.remote or "", request.headers.get("Authorization"))
        return await handler(request)

    app = web.Application(middlewares=[_answer_errors, guarded], client_max_size=limits.API_BODY_BYTES_MAX)
    _add_routes(app, control)
    return app


class OwnerServer:
    """Serves ``owner_app`` on a Unix socket.

    Args:
        path: of the socket; its directory must exist.
        control: the hub.
    """

    def __init__(self, path: Path, control: HubControl) -> None:
        self._path = path
        self._runner = web.AppRunner(owner_app(control), access_log=None, shutdown_timeout=_SHUTDOWN_S)
        self._inode = -1

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            AlreadyRunning: another hub listens there.
            DeviceError: the path is too long or cannot be used.
        """
        listener = bind_socket(self._path)
        self._inode = self._path.lstat().st_ino
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop listening, let requests under way end for a moment, remove the socket."""
        await self._runner.cleanup()
        remove_socket(self._path, self._inode)


def _add_routes(app: web.Application, control: HubControl) -> None:
    async def status(_: web.Request) -> web.StreamResponse:
        return _json(await control.status())

    async def devices(_: web.Request) -> web.StreamResponse:
        return _json({"devices": await control.devices()})

    async def deployments(_: web.Request) -> web.StreamResponse:
        return _json({"deployments": await control.deployments()})

    async def peers(_: web.Request) -> web.StreamResponse:
        return _json({"peers": await control.peers()})

    async def metrics(_: web.Request) -> web.StreamResponse:
        body = (await control.metrics()).encode()
        return web.Response(body=body, headers={"Content-Type": METRICS_TYPE, "Cache-Control": "no-store"})

    for name, handler in (
        ("status", status),
        ("devices", devices),
        ("deployments", deployments),
        ("peers", peers),
        ("metrics", metrics),
    ):
        app.router.add_get(f"/v1/{name}", handler, allow_head=False)


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except DriftseedError as error:
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}
        return _json(error_object(error), http_status(error), headers)
    except web.HTTPException as refusal:
        allow = {"Allow": refusal.headers["Allow"]} if "Allow" in refusal.headers else {}
        said = (
            NotFound(f"no such path: {request.path[:200]}", hint="docs/api.md lists them")
            if refusal.status == 404
            else RequestRefused(refusal.reason, status=refusal.status)
        )
        return _json(error_object(said), refusal.status, allow)
    except Exception:  # noqa: BLE001 - here a fault of ours meets a client, who gets an answer but no traceback
        _log.exception("the hub's API failed at %r", request.path[:200])
        return _json(internal_error_object(), 500)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(value) + b"\n",
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )
