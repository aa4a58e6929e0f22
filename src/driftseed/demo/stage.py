"""The stage of the demo: a hub and devices as processes, watched, waited for, and compared with what was published."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from driftseed.agent.config import ConfigStore
from driftseed.agent.join import join
from driftseed.core.addresses import parse_address
from driftseed.core.errors import DeviceError, DiskFull, DriftseedError
from driftseed.core.model import NodeAddress
from driftseed.demo import payload
from driftseed.demo.machines import Connect, Device, by_architecture, make_devices
from driftseed.demo.payload import Library
from driftseed.demo.processes import Child, Processes
from driftseed.demo.publisher import Publisher, Signed
from driftseed.demo.result import DeviceResult, Result
from driftseed.demo.show import Show
from driftseed.demo.workspace import Workspace
from driftseed.publish.resolve import resolve_address
from driftseed.publish.send import PublishResult
from driftseed.store.files import free_bytes

LOOK_S: Final = 0.25
"""Seconds between two looks at all devices."""
STEP_S: Final = 60.0
"""Seconds for any one thing that is waited for, with eight devices; more have more."""
AT_ONCE: Final = 2 * (os.cpu_count() or 1)
"""Processes that are started, and devices that join, at the same time."""
LOOKING_AT_ONCE: Final = 8
TREES_KEPT: Final = 6
"""Copies of the payload that one device may have at once: contents, versions, one being unpacked."""


class WentWrong(Exception):
    """The demo cannot go on."""


class Stage:
    """All that one run has to do with, and what every act of it needs.

    Args:
        workspace: where everything is.
        processes: starts and ends processes.
        show: tells what happens.
        result: filled in on the way.
        connect: speaks to a local API.
        count: devices.
    """

    def __init__(
        self,
        workspace: Workspace,
        processes: Processes,
        show: Show,
        result: Result,
        connect: Connect,
        count: int,
    ) -> None:
        self.workspace = workspace
        self.processes = processes
        self.show = show
        self.result = result
        self.began = time.monotonic()
        self.devices = make_devices(count, workspace.devices, connect)
        self.patience_s = STEP_S * max(1.0, count / 8)
        self.deployment = ""
        """The one that is watched."""
        self.publisher: Publisher
        self.library: Library
        self.hub: Child

    async def set_up(self) -> None:
        """Make a fleet, start its hub, have devices join and start them. Raises WentWrong or DriftseedError."""
        self.library = await asyncio.to_thread(payload.read_library)
        needed = self.library.size * (len(self.devices) * TREES_KEPT + 8)
        if free_bytes(self.workspace.path) < needed:
            raise DiskFull(
                f"the demo needs {needed / 1e9:.1f} GB at {self.workspace.directory}",
                hint="make space, take fewer --devices, or name another place with --keep",
            )
        self.publisher = await asyncio.to_thread(Publisher, self.workspace.fleet, self.workspace.scratch)
        self.publisher.write_kit(self.workspace.kit)
        address = await self._start_hub()
        self.show.say(f"a fleet, and its hub at {address.addrs[0]} (process {self.hub.process.pid})")
        ticket = await asyncio.to_thread(self.publisher.invite, address, len(self.devices) + 1)
        gate = asyncio.Semaphore(AT_ONCE)

        async def bring_up(device: Device) -> None:
            async with gate:
                joined = await join(ticket, device.data)
                device.id = joined.device
                # The demo stays on this machine: the network that it is on has nothing to do with it.
                ConfigStore(device.data).change({"lan_discovery": False})
                await self.switch_on(device)

        async with gate:
            await join(ticket, self.workspace.path / "attacker")
        await asyncio.gather(*map(bring_up, self.devices))
        self.result.devices = [
            DeviceResult(name=each.name, device=each.id, board=each.board, arch=each.arch)
            for each in self.devices
        ]
        boards = sorted({device.board for device in self.devices})
        self.show.say(f"{len(self.devices)} devices joined: {', '.join(boards)}")

    async def _start_hub(self) -> NodeAddress:
        self.hub = await self.processes.start(
            "hub",
            *("-m", "driftseed", "hub", "run", "--kit", str(self.workspace.kit)),
            *("--data", str(self.workspace.hub), "--listen", "127.0.0.1:0"),
            read=True,
        )
        try:
            line = await self.hub.line(self.patience_s)
        except TimeoutError:
            line = ""
        said, found, address = line.partition("hub ready: ")
        if said or not found:
            raise WentWrong(f"the hub did not start: {line or 'it said nothing'}")
        return resolve_address(parse_address(address)).address

    async def switch_on(self, device: Device) -> None:
        """Start a device's agent and wait until it answers."""
        child = await self.processes.start(
            device.name,
            *("-m", "driftseed", "agent", "run", "--data", str(device.data), "--listen", "127.0.0.1:0"),
            *("--inventory", f"arch={device.arch}", "--inventory", f"board={device.board}"),
            *("--inventory", f"hostname={device.name}"),
        )
        end = time.monotonic() + self.patience_s
        while not (device.data / "agent.sock").is_socket():
            if child.died or time.monotonic() > end:
                raise WentWrong(f"the agent of {device.name} did not start")
            await asyncio.sleep(LOOK_S / 2)
        device.child = child

    async def switch_off(self, device: Device) -> None:
        """End a device's agent as an init system would. Raises WentWrong when it does not end cleanly."""
        child, device.child = device.child, None
        if child is not None and (status := await self.processes.stop(child)) != 0:
            raise WentWrong(f"the agent of {device.name} ended with status {status}")

    async def limit(self, devices: list[Device], rate: int) -> None:
        """Narrow downlinks to so many bytes per second; 0 takes the limit away."""
        for device in devices:
            await asyncio.to_thread(
                device.api.request, "PATCH", "/v1/config", {"download_limit_bytes_s": rate}
            )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how long a part of the demo takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.result.phases[name] = round(time.monotonic() - began, 2)

    def pairs(self) -> Iterator[tuple[Device, DeviceResult]]:
        """Each device and what is noted of it."""
        return zip(self.devices, self.result.devices, strict=True)

    async def until(
        self,
        what: str,
        condition: Callable[[], bool],
        publishing: asyncio.Task[PublishResult] | None = None,
        *,
        fail: bool = True,
    ) -> None:
        """Look at all devices until something is so; without ``fail``, give up in silence.

        Raises:
            WentWrong: it did not come, or a process ended by itself.
            DriftseedError: publishing failed.
        """
        end = time.monotonic() + self.patience_s
        while True:
            await self.look()
            if condition():
                return
            if publishing is not None and publishing.done():
                publishing.result()
            if died := self.processes.died():
                raise WentWrong(f"{died[0].name} ended by itself, status {died[0].process.returncode}")
            if time.monotonic() > end:
                if not fail:
                    return
                states = ", ".join(
                    f"{each.name} {each.update(self.deployment).state}" for each in self.devices
                )
                raise WentWrong(f"after {self.patience_s:.0f} s still not {what}: {states}")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask all devices that are on how they do, and show it."""
        gate = asyncio.Semaphore(LOOKING_AT_ONCE)

        async def look(device: Device) -> None:
            async with gate:
                try:
                    await asyncio.to_thread(device.look)
                except DriftseedError as error:
                    self.show.say(f"{device.name} does not answer: {error.message}")

        await asyncio.gather(*(look(device) for device in self.devices if device.on))
        for device, found in self.pairs():
            found.version = device.version
        self.show.look(self.devices, self.deployment)

    async def compare(self, signed: Signed, *, last: bool = False) -> set[str]:
        """Compare what is installed with what was published; returns the names of devices that differ."""
        wrong = set()
        for arch, group in by_architecture(self.devices).items():
            published = await asyncio.to_thread(self.publisher.published, signed, arch)
            for device in group:
                try:
                    found = await asyncio.to_thread(payload.differences, device.tree, published)
                except OSError as error:
                    raise DeviceError(f"cannot compare {device.tree}: {error}") from error
                self.result.files_compared += len(published)
                if found:
                    wrong.add(device.name)
                    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                    self.result.problems.append(f"{device.name}, {signed.version}: {found[0]}{more}")
                if last:
                    self.result.devices[self.devices.index(device)].files_compared = len(published)
        self.show.say(f"{signed.version} compared with what was published: {len(wrong)} devices differ")
        return wrong
