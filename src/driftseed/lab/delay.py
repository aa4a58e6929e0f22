"""The process that is a line with delay and loss: ``python -m driftseed.lab.delay FD FD DELAY_MS LOSS_PERCENT``.

Packets keep their order, as on a real line. Ends when either interface is gone.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import deque
from typing import Final

PACKET_BYTES_MAX: Final = 65_536
QUEUE_PACKETS_MAX: Final = 20_000
"""Packets under way in one direction; more are dropped."""
BATCH: Final = 64
"""Packets taken from one side before the other has its turn."""


class Direction:
    """One direction of the line.

    Args:
        source: descriptor to read packets from.
        target: descriptor to write them to.
        delay_s: seconds that a packet is under way.
        loss: chance of a packet to get lost, 0 to 1.
    """

    def __init__(self, source: int, target: int, delay_s: float, loss: float) -> None:
        self._source = source
        self._target = target
        self._delay_s = delay_s
        self._loss = loss
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._rng = random.Random(0)  # noqa: S311 - loss is to be the same each time, and is no secret
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(self._source, PACKET_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                self._loop.stop()  # the interface is gone, and with it the line
                return
            if self._rng.random() < self._loss or len(self._under_way) >= QUEUE_PACKETS_MAX:
                continue
            self._under_way.append((self._loop.time() + self._delay_s, packet))
        self._arrange()

    def _arrange(self) -> None:
        if self._under_way and self._timer is None:
            self._timer = self._loop.call_at(self._under_way[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._under_way and self._under_way[0][0] <= now:
            _, packet = self._under_way.popleft()
            try:
                os.write(self._target, packet)
            except BlockingIOError:
                continue  # its queue is full: lost, as on any line
            except OSError:
                self._loop.stop()
                return
        self._arrange()


def main(arguments: list[str]) -> None:
    """Carry packets until the interfaces are gone."""
    one, other = int(arguments[0]), int(arguments[1])
    delay_s, loss = float(arguments[2]) / 1000, float(arguments[3]) / 100
    loop = asyncio.new_event_loop()
    directions: list[Direction] = []

    def begin() -> None:
        directions.append(Direction(one, other, delay_s, loss))
        directions.append(Direction(other, one, delay_s, loss))

    loop.call_soon(begin)
    loop.run_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
