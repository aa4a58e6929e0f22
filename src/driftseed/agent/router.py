"""What an API handler gets and gives, and which handler a path leads to.

Nothing here touches a socket: ``localhttp`` does.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from driftseed.core import limits
from driftseed.core.apierrors import error_object, http_status, internal_error_object
from driftseed.core.errors import DriftseedError, NotFound, RequestRefused

JSON_TYPE: Final = "application/json"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_PARAMETER: Final = re.compile(r"\{([a-z_][a-z0-9_]*)(\.\.\.)?\}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class MethodNotAllowed(RequestRefused):
    """The path exists, but not for this method."""

    def __init__(self, method: str, allowed: list[str]) -> None:
        super().__init__(
            f"{method[:32]} is not possible here",
            status=405,
            hint=f"possible: {', '.join(allowed)}",
        )
        self.allowed = allowed


class Body(Protocol):
    """A request's body while it arrives."""

    @property
    def length(self) -> int | None:
        """Bytes that the head announces; None when it does not say (chunked)."""
        ...

    async def next(self, *, within_request_time: bool) -> bytes:
        """The next bytes; none at the end.

        Args:
            within_request_time: whether the whole request must have arrived in
                ``limits.API_REQUEST_TIMEOUT_S``; otherwise it is enough that bytes keep coming.

        Raises:
            RequestRefused: the body is malformed, too slow, or ended early.
        """
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose head has arrived, and whose body may still be on its way."""

    method: str
    path: str
    """As sent, percent-encoded, without the query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Body
    params: Mapping[str, str] = field(default_factory=dict)
    """What the route's ``{names}`` stand for, decoded. Not safe as file names by itself."""

    async def read(self, limit: int = limits.API_BODY_BYTES_MAX) -> bytes:
        """The whole body.

        Args:
            limit: most bytes that it may have.

        Raises:
            RequestRefused: it has more (status 413), is malformed, or did not arrive in time.
        """
        return b"".join([part async for part in self._parts(limit, within_request_time=True)])

    def stream(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it arrives, for what is too large for memory.

        Args:
            limit: most bytes that it may have.

        Raises:
            RequestRefused: it has more (status 413), is malformed, or stalled; while iterating.
        """
        return self._parts(limit, within_request_time=False)

    async def json_object(self) -> dict[str, Any]:
        """The body, which must be one JSON object. Raises RequestRefused."""
        data = await self.read()
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestRefused(f"the body is not JSON: {error}", status=400) from None
        if not isinstance(value, dict):
            raise RequestRefused("the body is not a JSON object", status=400)
        return value

    async def _parts(self, limit: int, *, within_request_time: bool) -> AsyncIterator[bytes]:
        if self.body.length is not None and self.body.length > limit:
            raise _too_large(limit)
        received = 0
        while part := await self.body.next(within_request_time=within_request_time):
            received += len(part)
            if received > limit:
                raise _too_large(limit)
            yield part


def _too_large(limit: int) -> RequestRefused:
    return RequestRefused(f"the body has more than {limit} bytes", status=413)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole in memory."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        """A JSON answer from a dict or msgspec Struct."""
        return cls(status, msgspec.json.encode(value) + b"\n")

    @classmethod
    def of_error(cls, error: DriftseedError) -> Response:
        """The answer that tells a client of an error."""
        headers = {"Allow": ", ".join(error.allowed)} if isinstance(error, MethodNotAllowed) else {}
        return cls(http_status(error), msgspec.json.encode(error_object(error)) + b"\n", headers=headers)

    @classmethod
    def internal_error(cls) -> Response:
        """The answer when something of ours broke."""
        return cls.json(internal_error_object(), 500)


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Route:
    segments: tuple[tuple[str, bool], ...]
    """Text, and whether it is a parameter's name."""
    rest: str | None
    """Parameter that takes all remaining segments."""
    methods: dict[str, Handler]

    def match(self, segments: list[str]) -> dict[str, str] | None:
        fixed = len(self.segments)
        if len(segments) < fixed + (self.rest is not None) or (self.rest is None and len(segments) > fixed):
            return None
        params = {}
        for (text, is_parameter), segment in zip(self.segments, segments, strict=False):
            if is_parameter:
                params[text] = segment
            elif text != segment:
                return None
        if self.rest is not None:
            params[self.rest] = "/".join(segments[fixed:])
        return params


class Router:
    """Paths with parameters: ``/v1/updates/{deployment}``, and ``{name...}`` for one or more segments."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Lead requests of a method for a path to a handler.

        Raises:
            ValueError: the pattern is not one, or has a handler for this method: a fault of ours.
        """
        route = self._routes.get(pattern)
        if route is None:
            route = self._routes[pattern] = _parse_pattern(pattern)
        if method in route.methods:
            raise ValueError(f"{method} {pattern} has a handler already")
        route.methods[method] = handler

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Every method and pattern."""
        return [(method, pattern) for pattern, route in self._routes.items() for method in route.methods]

    def resolve(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler for a request, and its parameters.

        Args:
            method: as sent.
            path: as sent, percent-encoded, without the query.

        Raises:
            NotFound: no such path.
            MethodNotAllowed: not for this method.
            RequestRefused: the path does not decode (status 400).
        """
        segments = decode_path(path)
        for route in self._routes.values():
            params = route.match(segments)
            if params is None:
                continue
            handler = route.methods.get(method)
            if handler is None:
                raise MethodNotAllowed(method, sorted(route.methods))
            return handler, params
        raise NotFound(f"no such path: {path[:200]}", hint="docs/api.md lists them")


def _parse_pattern(pattern: str) -> _Route:
    segments: list[tuple[str, bool]] = []
    rest: str | None = None
    for segment in pattern.removeprefix("/").split("/"):
        parameter = _PARAMETER.fullmatch(segment)
        if rest is not None or not segment or (parameter is None and "{" in segment):
            raise ValueError(f"not a pattern: {pattern}")
        if parameter is not None and parameter[2]:
            rest = parameter[1]
        else:
            segments.append((parameter[1], True) if parameter else (segment, False))
    return _Route(tuple(segments), rest, {})


def request_path(target: str) -> str:
    """The path of a request target in origin or absolute form (RFC 9112, section 3.2), without its query.

    Raises:
        RequestRefused: it is neither (status 400).
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        try:
            path = urlsplit(path).path
        except ValueError:
            path = ""
    if not path.startswith("/"):
        raise RequestRefused(f"not a path: {target[:200]!r}", status=400)
    return path


def decode_path(path: str) -> list[str]:
    """The segments of a path, percent-decoded one by one, so that ``%2F`` never separates.

    Raises:
        RequestRefused: not UTF-8, or with control characters (status 400).
    """
    try:
        segments = [unquote_to_bytes(part).decode("utf-8", "strict") for part in path.split("/")[1:]]
    except UnicodeDecodeError:
        raise RequestRefused("the path is not UTF-8", status=400) from None
    if any(_CONTROL.search(segment) for segment in segments):
        raise RequestRefused("the path has control characters", status=400)
    return segments
