"""How an error looks in an answer of the agent's or the hub's API.

Both APIs answer every failure with the same object, so that a client can show it and leave with the right
exit code without knowing where it came from::

    {"error": {"reason": "disk-full", "exit_code": 72, "message": "...", "hint": "..."}}
"""

from __future__ import annotations

from typing import Any, Final

from driftseed.core.errors import (
    Conflict,
    DeviceError,
    DriftseedError,
    Misuse,
    NotFound,
    RequestRefused,
    TransportError,
    TrustError,
)

_STATUS: Final[tuple[tuple[type[DriftseedError], int], ...]] = (
    (NotFound, 404),
    (Conflict, 409),
    (Misuse, 400),
    (TrustError, 422),
    (TransportError, 502),
    (DeviceError, 503),
)
"""First match counts, so an exception of a group stands before its group."""
INTERNAL_STATUS: Final = 500


def http_status(error: DriftseedError) -> int:
    """The HTTP status (RFC 9110, section 15) for an error: by whose fault it is."""
    if isinstance(error, RequestRefused):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), INTERNAL_STATUS)


def error_object(error: DriftseedError) -> dict[str, Any]:
    """The JSON object that stands for an error."""
    return {
        "error": {
            "reason": error.reason,
            "exit_code": error.exit_code,
            "message": error.message,
            "hint": error.hint,
        }
    }


def internal_error_object() -> dict[str, Any]:
    """The JSON object for a fault of ours: what went wrong is in the log, and nobody else's business."""
    return error_object(DriftseedError("internal error", hint="the log has the details"))
