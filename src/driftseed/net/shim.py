"""The one place that imports the generated iroh binding, mended where it is slow.

The binding copies each ``bytes`` argument into Rust's buffer one byte at a time in Python: 5 MB/s and a
whole core. Replacing that one method by a ``memmove`` gives more than 200 MB/s. The replacement is made only where
the method is as we know it, so that a release that needs none is left alone;
``tests/test_net_shim.py`` fails below 50 MB/s, whichever of the two it is that breaks.
"""

from __future__ import annotations

import ctypes
from typing import Any

from iroh import iroh_ffi as iroh

__all__ = ["cause", "iroh", "shimmed"]


def _write(builder: Any, value: bytes | bytearray | memoryview) -> None:
    """Stand-in for ``_UniffiRustBufferBuilder.write``: the same contract, one copy by the C library."""
    size = len(value)
    if size == 0:
        return
    source: Any = value
    if not isinstance(value, bytes):
        view = memoryview(value)
        source = bytes(view) if view.readonly else ctypes.byref(ctypes.c_char.from_buffer(view))
    with builder._reserve(size):  # noqa: SLF001 - the generated code offers nothing public
        buffer = builder.rbuf
        ctypes.memmove(ctypes.addressof(buffer.data.contents) + buffer.len, source, size)


def _install() -> bool:
    builder = getattr(iroh, "_UniffiRustBufferBuilder", None)
    if builder is None or not hasattr(builder, "write") or not hasattr(builder, "_reserve"):
        return False
    builder.write = _write
    return True


shimmed: bool = _install()
"""Whether the binding had the slow method and has ours now."""


def cause(error: Any) -> str:
    """The last line of an ``IrohError``: what really happened, without paths of Rust sources.

    Args:
        error: an ``iroh.IrohError``.
    """
    lines = [line.strip() for line in str(error.message()).splitlines() if line.strip()]
    last = lines[-1] if lines else "unknown error"
    return last.split(" (/", 1)[0]
