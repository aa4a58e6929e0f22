"""Two endpoints and a relay where no UDP passes; run by ``test_net_relay_only.py`` in a network of its own.

Prints one JSON object: what was carried, and how.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time

from driftseed.core import wire
from driftseed.core.limits import MIB
from driftseed.core.model import NodeAddress
from support_net import accepted, endpoint, until
from support_relay import relay

SIZE = 24 * MIB


async def main() -> None:
    """Carry ``SIZE`` bytes from one endpoint to the other."""
    async with relay() as (server, url), endpoint(relays=[url]) as one, endpoint(relays=[url]) as two:
        await until(lambda: server.stats()["clients"] == 2)
        address = NodeAddress(device=two.device, addrs=two.addresses(), relay=url)
        out, into = await asyncio.gather(one.dial(address, wire.ALPN_OVERLAY), accepted(two))
        stream = await out.open_stream()
        block = os.urandom(MIB)
        digest = hashlib.sha256()
        start = time.perf_counter()

        async def send() -> None:
            for _ in range(SIZE // MIB):
                await stream.write_raw(block)
            await stream.finish()

        async def receive() -> int:
            incoming = await into.accept_stream()
            total = 0
            while data := await incoming.read_raw(MIB):
                digest.update(data)
                total += len(data)
            return total

        _, total = await asyncio.gather(send(), receive())
        result = {
            "total": total,
            "whole": digest.hexdigest() == hashlib.sha256(block * (SIZE // MIB)).hexdigest(),
            "kinds": [out.path().kind, into.path().kind],
            "relayed_bytes": server.stats()["bytes"],
            "megabytes_per_second": round(SIZE / (time.perf_counter() - start) / 1e6),
        }
        sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
