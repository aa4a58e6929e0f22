"""Logging: an event and its fields, as lines for people or as JSON lines.

A module writes ``log = logs.get(__name__)`` and ``log.info("link-opened", device=..., path="lan")``. The event
is a constant token that never carries data; what varies goes into fields, so that a log can be searched, counted
and compared. Records of other libraries pass through the same handler with their text as the event.

As JSON, a record is one line of ASCII::

    {"ts": "2026-01-31T09:14:02.118Z", "level": "info", "logger": "driftseed.net.link",
     "event": "link-opened", "fields": {"device": "3f…", "path": "lan"}}

``traceback`` is added where there is one. Secrets stay out in three ways: nobody hands them over; bytes are
never shown, only counted; and fields with a telling name, and tickets anywhere in a text, are blotted out.
What a peer sent cannot forge a line, move a terminal's cursor or fill a disk: control characters are
escaped and a value's length is bounded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import math
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO, TypeAlias

from driftseed.core import limits
from driftseed.core.errors import DriftseedError, Misuse

__all__ = ["EventLogger", "LogFormat", "LogLevel", "LogOptions", "Logging", "configure", "get"]

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"

_FIELDS: Final = "fields"
"""Attribute of a log record under which the fields travel, also for ``extra={"fields": …}``."""
_BLOT: Final = "[secret]"
_SECRET_NAMES: Final = re.compile(
    r"passphrase|password|secret|invitation|ticket|private|token", re.IGNORECASE
)
_TICKET: Final = re.compile(r"driftseed1[0-9A-Za-z_=+/-]{8,}")
_WORD: Final = re.compile(r"[0-9A-Za-z_.,:;/@%+~\[\]-]+")
_NESTING_MAX: Final = 4


class LogFormat(StrEnum):
    """How records look."""

    PEOPLE = "people"
    JSON = "json"


class LogLevel(StrEnum):
    """The least important record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What the command line says about logging."""

    format: LogFormat = LogFormat.PEOPLE
    level: LogLevel = LogLevel.INFO
    """For our own loggers; other libraries are heard from ``warning`` on, and never below this."""
    file: Path | None = None
    """Where to write instead of the standard error stream. One process per file."""
    file_bytes: int = limits.LOG_FILE_BYTES_DEFAULT
    """Bytes at which the file is rotated; 0 leaves rotation to logrotate and reopens a file that was moved."""
    files_kept: int = limits.LOG_FILES_KEPT_DEFAULT
    """Rotated files that are kept beside the current one (``FILE.1`` is the newest)."""


class EventLogger:
    """Writes events with fields to a standard library logger."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """Something that helps to follow the program's steps."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Something that an operator may want to know afterwards."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that went wrong and was dealt with, such as a peer that misbehaved."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that this device failed to do."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """A fault of our own, with its traceback."""
        trace = (type(error), error, error.__traceback__)
        self._write(logging.ERROR, event, {"error": error, **fields}, trace)

    def _write(
        self,
        level: int,
        event: str,
        fields: Mapping[str, object],
        trace: tuple[type[BaseException], BaseException, TracebackType | None] | None = None,
    ) -> None:
        # An event may hold a percent sign: without arguments the standard library does not interpret it.
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=trace, extra={_FIELDS: fields}, stacklevel=3)


def get(name: str) -> EventLogger:
    """The event logger of a module. Args: name: its ``__name__``."""
    return EventLogger(logging.getLogger(name))


def _text(text: str) -> str:
    """Blot out tickets and bound the length."""
    shown = _TICKET.sub(f"driftseed1{_BLOT}", text[: limits.LOG_VALUE_CHARS_MAX + 1])
    if len(text) > limits.LOG_VALUE_CHARS_MAX:
        shown = f"{shown[: limits.LOG_VALUE_CHARS_MAX]}… ({len(text)} characters)"
    return shown


def _plain(value: object, depth: int = 0) -> Plain:  # noqa: PLR0911  one return per kind of value reads best
    """Turn a field's value into what JSON can say, without secrets and within bounds."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case DriftseedError():
            return _text(f"{value.reason}: {value}")
        case BaseException():
            return _text(f"{type(value).__name__}: {value}")
        case str():
            return _text(str(value))
        case Collection() if depth >= _NESTING_MAX:
            return f"<{len(value)} items>"
        case Mapping():
            shown = list(value.items())[: limits.LOG_ITEMS_MAX]
            return {str(name): _field(str(name), item, depth + 1) for name, item in shown}
        case Collection():
            items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else list(value)
            return [_plain(item, depth + 1) for item in items[: limits.LOG_ITEMS_MAX]]
        case _:
            return _text(str(value))


def _field(name: str, value: object, depth: int = 0) -> Plain:
    return _BLOT if _SECRET_NAMES.search(name) else _plain(value, depth)


def _fields(record: logging.LogRecord) -> dict[str, Plain]:
    fields = getattr(record, _FIELDS, None)
    if not isinstance(fields, Mapping):  # another library's attribute of the same name
        return {}
    return {str(name): _field(str(name), value) for name, value in fields.items()}


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    lines = "".join(traceback.format_exception(record.exc_info[1]))
    return _TICKET.sub(f"driftseed1{_BLOT}", lines).rstrip("\n")


def _moment(record: logging.LogRecord, timespec: str) -> str:
    """RFC 3339, UTC."""
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec=timespec).removesuffix("+00:00") + "Z"
    )


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Plain] = {
            "ts": _moment(record, "milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _text(record.getMessage()),
        }
        if fields := _fields(record):
            entry["fields"] = fields
        if trace := _traceback(record):
            entry["traceback"] = trace
        return json.dumps(entry)


class _People(logging.Formatter):
    """``2026-01-31T09:14:02Z warning net.link: peer-refused device=3f… reason=not-a-member``."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("driftseed.")
        words = [
            _moment(record, "seconds"),
            record.levelname.lower(),
            f"{name}:",
            _one_line(record.getMessage()),
        ]
        words += [f"{key}={_quoted(value)}" for key, value in _fields(record).items()]
        # Indented, so that no line of a foreign message can pass for a record.
        trace = [f"    {_one_line(line)}" for line in _traceback(record).splitlines()]
        return "\n".join([" ".join(words), *trace])


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _text(text))


def _quoted(value: Plain) -> str:
    """A word as it is, anything else so that where it ends can be seen."""
    if isinstance(value, str) and not _WORD.fullmatch(value):
        return '"' + _one_line(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    return value if isinstance(value, str) else json.dumps(value)


class _CountsLosses(logging.StreamHandler[TextIO]):
    """Counts records that could not be written, and says so as soon as one can be.

    A full disk must neither stop the program nor fill the standard error stream with tracebacks, which
    is what the standard library's handlers do.
    """

    lost: int = 0

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self.lost:
            return text
        notice = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log-records-lost", None, None)
        setattr(notice, _FIELDS, {"count": self.lost})
        return f"{super().format(notice)}\n{text}"

    def emit(self, record: logging.LogRecord) -> None:
        before = self.lost
        super().emit(record)
        if self.lost == before:
            self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the standard library's name
        if isinstance(sys.exc_info()[1], OSError):
            self.lost += 1
        else:
            super().handleError(record)


class _Rotated(_CountsLosses, logging.handlers.RotatingFileHandler):
    """Rotates by size."""


class _Watched(_CountsLosses, logging.handlers.WatchedFileHandler):
    """Reopens a file that logrotate moved."""


class Logging:
    """A configured log; ``close`` gives the process back as it was.

    Args:
        handler: where records go.
        level: for our own loggers.
    """

    def __init__(self, handler: logging.Handler, level: LogLevel) -> None:
        self._handler = handler
        self._ours = logging.getLogger("driftseed")
        self._root = logging.getLogger()
        self._levels_before = (self._ours.level, self._root.level)
        number = logging.getLevelNamesMapping()[level.upper()]
        self._ours.setLevel(number)
        self._root.setLevel(max(number, logging.WARNING))
        self._root.addHandler(handler)

    def close(self) -> None:
        """Write what is buffered and stop handling records."""
        self._root.removeHandler(self._handler)
        ours, root = self._levels_before
        self._ours.setLevel(ours)
        self._root.setLevel(root)
        with contextlib.suppress(OSError):  # a full disk: those records were counted as lost already
            self._handler.close()


def configure(options: LogOptions, *, stream: TextIO | None = None) -> Logging:
    """Start logging for the whole process.

    Args:
        options: what was asked for.
        stream: where to write when no file is named; the standard error stream by default, as what
            commands print for people and programs is on the standard output.

    Raises:
        Misuse: the file cannot be opened.
    """
    handler: logging.Handler
    if options.file is None:
        handler = _CountsLosses(stream if stream is not None else sys.stderr)
    else:
        handler = _file_handler(options, options.file)
    handler.setFormatter(_JsonLines() if options.format is LogFormat.JSON else _People())
    return Logging(handler, options.level)


def _file_handler(options: LogOptions, path: Path) -> logging.Handler:
    try:
        if options.file_bytes == 0:
            return _Watched(path, encoding="utf-8")
        return _Rotated(path, maxBytes=options.file_bytes, backupCount=options.files_kept, encoding="utf-8")
    except OSError as error:
        raise Misuse(
            f"cannot write the log file {path}: {error.strerror}",
            hint="name another file with --log-file, or make its directory writable",
        ) from None
