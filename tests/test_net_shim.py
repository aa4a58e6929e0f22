"""The engine's throughput from Python: what the shim is for."""

from __future__ import annotations

import asyncio
import time

import pytest

from driftseed.core.limits import MIB
from driftseed.net.shim import iroh, shimmed
from support_net import WAIT_S, connected, two_endpoints

MEGABYTES_PER_SECOND_MIN = 50
SIZE = 64 * MIB


def lowered(value: bytes | bytearray | memoryview) -> bytes:
    """What Rust would see of an argument."""
    builder = iroh._UniffiRustBufferBuilder()
    builder.write(b"before")
    builder.write(value)
    builder.write(b"after")
    buffer = builder.finalize()
    try:
        return bytes(buffer.data[: buffer.len])
    finally:
        buffer.free()


@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 4096, MIB + 1])
def test_bytes_of_every_kind_arrive_as_they_are(size: int) -> None:
    value = bytes(range(256)) * (size // 256 + 1)
    value = value[:size]
    expected = b"before" + value + b"after"
    assert lowered(value) == expected
    assert lowered(bytearray(value)) == expected
    assert lowered(memoryview(value)) == expected
    assert lowered(memoryview(bytearray(value))) == expected


async def test_a_stream_carries_more_than_50_megabytes_per_second() -> None:
    """Fails when a new release of the binding breaks the shim, or needs one that it has no more."""
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        stream = await out.open_stream()
        block = bytes(MIB)

        async def send() -> None:
            for _ in range(SIZE // MIB):
                await stream.write_raw(block)
            await stream.finish()

        async def receive() -> int:
            incoming = await into.accept_stream()
            total = 0
            while data := await incoming.read_raw(MIB):
                total += len(data)
            return total

        start = time.perf_counter()
        async with asyncio.timeout(WAIT_S * 4):
            _, total = await asyncio.gather(send(), receive())
        rate = SIZE / (time.perf_counter() - start) / 1e6
    assert total == SIZE
    assert rate > MEGABYTES_PER_SECOND_MIN, f"{rate:.0f} MB/s, shimmed: {shimmed}"
