"""The demo, act by act: everything is done by the same processes and calls that a real fleet uses."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from driftseed.agent.config import ConfigStore
from driftseed.agent.join import join
from driftseed.core.addresses import parse_address
from driftseed.core.errors import DeviceError, DiskFull, DriftseedError
from driftseed.core.lifecycle import TERMINAL, State
from driftseed.core.model import NodeAddress
from driftseed.demo import payload
from driftseed.demo.attacker import Orders, Target
from driftseed.demo.machines import Connect, Device, by_architecture, make_devices
from driftseed.demo.payload import Library
from driftseed.demo.processes import Child, Processes
from driftseed.demo.publisher import Publisher, Signed
from driftseed.demo.result import DeviceResult, HubDeath, Refusal, Result
from driftseed.demo.show import Show
from driftseed.demo.workspace import Workspace
from driftseed.node.home import Home
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
NARROW_S: Final = 24.0
"""Seconds that version 2 would take on most devices: their downlinks are so narrow until the hub is dead, or on
a fast machine nobody would see a middle of the rollout."""
TREES_KEPT: Final = 6
"""Copies of the payload that one device may have at once: contents, versions, one being unpacked."""

ATTACKS: Final = (
    ("an old timestamp, replayed", "metadata-replayed"),
    ("metadata signed by the build key alone", "metadata-unsigned"),
    ("a tampered artifact", "bad-piece"),
)


class WentWrong(Exception):
    """The demo cannot go on."""


class Story:
    """One run.

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
        self._workspace = workspace
        self._processes = processes
        self._show = show
        self._result = result
        self._began = time.monotonic()
        self.devices = make_devices(count, workspace.devices, connect)
        self._patience_s = STEP_S * max(1.0, count / 8)
        self._deployment = ""
        self._publisher: Publisher
        self._library: Library
        self._hub: Child

    async def run(self) -> None:
        """All acts, in order. Raises WentWrong or DriftseedError."""
        with self._phase("start"):
            await self._start_fleet()
        with self._phase("version 1"):
            first = await self._install_first()
        with self._phase("version 2"):
            old_timestamp = self._publisher.timestamp()
            second = await self._lose_the_hub(first)
        with self._phase("version 3"):
            await self._roll_back(second)
        with self._phase("attacks"):
            await self._attack(old_timestamp)
        with self._phase("comparison"):
            await self._compare(second, last=True)

    # --- act 0: a hub and devices -----------------------------------------------------------------

    async def _start_fleet(self) -> None:
        self._library = await asyncio.to_thread(payload.read_library)
        needed = self._library.size * (len(self.devices) * TREES_KEPT + 8)
        if free_bytes(self._workspace.path) < needed:
            raise DiskFull(
                f"the demo needs {needed / 1e9:.1f} GB at {self._workspace.directory}",
                hint="make space, take fewer --devices, or name another place with --keep",
            )
        self._publisher = await asyncio.to_thread(Publisher, self._workspace.fleet, self._workspace.scratch)
        self._publisher.write_kit(self._workspace.kit)
        address = await self._start_hub()
        self._show.say(f"a fleet, and its hub at {address.addrs[0]} (process {self._hub.process.pid})")
        ticket = await asyncio.to_thread(self._publisher.invite, address, len(self.devices) + 1)
        gate = asyncio.Semaphore(AT_ONCE)

        async def bring_up(device: Device) -> None:
            async with gate:
                joined = await join(ticket, device.data)
                device.id = joined.device
                # The demo stays on this machine: the network that it is on has nothing to do with it.
                ConfigStore(device.data).change({"lan_discovery": False})
                await self._switch_on(device)

        async with gate:
            await join(ticket, self._workspace.path / "attacker")
        await asyncio.gather(*map(bring_up, self.devices))
        self._result.devices = [
            DeviceResult(name=each.name, device=each.id, board=each.board, arch=each.arch)
            for each in self.devices
        ]
        boards = sorted({device.board for device in self.devices})
        self._show.say(f"{len(self.devices)} devices joined: {', '.join(boards)}")

    async def _start_hub(self) -> NodeAddress:
        self._hub = await self._processes.start(
            "hub",
            *("-m", "driftseed", "hub", "run", "--kit", str(self._workspace.kit)),
            *("--data", str(self._workspace.hub), "--listen", "127.0.0.1:0"),
            read=True,
        )
        try:
            line = await self._hub.line(self._patience_s)
        except TimeoutError:
            line = ""
        said, found, address = line.partition("hub ready: ")
        if said or not found:
            raise WentWrong(f"the hub did not start: {line or 'it said nothing'}")
        return resolve_address(parse_address(address)).address

    async def _switch_on(self, device: Device) -> None:
        """Start a device's agent and wait until it answers."""
        child = await self._processes.start(
            device.name,
            *("-m", "driftseed", "agent", "run", "--data", str(device.data), "--listen", "127.0.0.1:0"),
            *("--inventory", f"arch={device.arch}", "--inventory", f"board={device.board}"),
            *("--inventory", f"hostname={device.name}"),
        )
        end = time.monotonic() + self._patience_s
        while not (device.data / "agent.sock").is_socket():
            if child.died or time.monotonic() > end:
                raise WentWrong(f"the agent of {device.name} did not start")
            await asyncio.sleep(LOOK_S / 2)
        device.child = child

    async def _switch_off(self, device: Device) -> None:
        child, device.child = device.child, None
        if child is not None and (status := await self._processes.stop(child)) != 0:
            raise WentWrong(f"the agent of {device.name} ended with status {status}")

    # --- act 1: version 1 ---------------------------------------------------------------------------

    async def _install_first(self) -> Signed:
        first = await self._sign(payload.GOOD)
        size = first.bytes / len(first.artifacts) / 1e6
        self._show.say(
            f"published: {payload.RELEASE} {first.version}, {len(self._library.files)} files from {self._library.root}, "
            f"{size:.1f} MB for each of {', '.join(first.artifacts)}"
        )
        self._deployment = first.deployment
        published = asyncio.create_task(self._publisher.publish(self._patience_s), name="publish")
        try:
            await self._until("version 1 on all", lambda: self._all_are(first, State.SUCCEEDED), published)
            await published
        finally:
            await _end(published)
        for device, found in self._pairs():
            found.took(device.update(first.deployment))
        self._result.count_origin(first.bytes)
        self._result.origin_copies_first = self._result.origin_copies
        await self._compare(first)
        return first

    # --- act 2: version 2, and no hub any more --------------------------------------------------------

    async def _lose_the_hub(self, first: Signed) -> Signed:
        groups = by_architecture(self.devices).values()
        off = [group[-1] for group in groups if len(group) > 1]
        quick = [group[0] for group in groups]
        for device in off:
            await self._switch_off(device)
        self._show.say(f"{_names(off)} switched off")
        narrow = [device for device in self.devices if device.on and device not in quick]
        await self._limit(narrow, int(first.bytes / len(first.artifacts) / NARROW_S))
        second = await self._sign(payload.NEXT)
        self._deployment = second.deployment
        version = self._publisher.repository.timestamp_version
        published = asyncio.create_task(self._publisher.publish(self._patience_s), name="publish")
        self._show.say(
            f"published: {payload.RELEASE} {second.version}, without the modules that PEP 594 retired"
        )
        try:
            await self._until(
                "version 2 on a few devices",
                lambda: (
                    published.done()
                    and any(device.timestamp >= version for device in self.devices)
                    and {device.arch for device in self._holders(second)}
                    >= {each.arch for each in self.devices}
                ),
            )
            await published
        finally:
            await _end(published)
        await self._kill_hub(second, version, off)
        await self._limit(narrow, 0)
        await asyncio.gather(*map(self._switch_on, off))
        self._show.say(
            f"{_names(off)} switched on again: there is no hub, but they remember their neighbours"
        )
        await self._until("version 2 on all, without a hub", lambda: self._all_are(second, State.SUCCEEDED))
        for device, found in self._pairs():
            found.took(device.update(second.deployment))
            found.was_off = device in off
        self._result.count_origin(second.bytes)
        await self._compare(second)
        return second

    async def _kill_hub(self, second: Signed, version: int, off: list[Device]) -> None:
        status = await self._processes.kill(self._hub)
        holders = self._holders(second)
        self._result.hub = HubDeath(
            at=round(time.monotonic() - self._began, 2),
            exit_status=status,
            metadata=[each.name for each in self.devices if each.on and each.timestamp >= version],
            content=[each.name for each in holders],
            fetching={
                each.name: round(each.update(second.deployment).progress, 3)
                for each in self.devices
                if each.on and each not in holders
            },
            off=[each.name for each in off],
        )
        death = self._result.hub
        self._show.say(
            f"the hub is KILLED (process {self._hub.process.pid}, status {status}): {len(death.metadata)} devices have "
            f"the metadata, {len(death.content)} the content, {len(death.fetching)} parts of it, {len(off)} are off"
        )

    def _holders(self, signed: Signed) -> list[Device]:
        """Devices that are on and have all of its content."""
        fetching = {"unheard", State.WAITING, State.DOWNLOADING}
        return [
            each for each in self.devices if each.on and each.update(signed.deployment).state not in fetching
        ]

    # --- act 3: a version that does harm ---------------------------------------------------------------

    async def _roll_back(self, second: Signed) -> None:
        through = self.devices[0]
        third = await self._sign(payload.BROKEN)
        self._deployment = third.deployment
        self._show.say(
            f"published through {through.name}: {payload.RELEASE} {third.version}, whose health check will fail"
        )
        await asyncio.to_thread(self._publisher.publish_through, through.api)
        await self._until("version 3 rolled back on all", lambda: self._all_are(third, State.ROLLED_BACK))
        wrong = await self._compare(second)
        for device, found in self._pairs():
            update = device.update(third.deployment)
            if update.reason != "health-check-failed":
                self._result.problems.append(
                    f"{device.name} rolled back for {update.reason}: {update.detail}"
                )
            elif device.version == second.version and device.name not in wrong:
                found.rollback = f"{update.reason}: {update.detail}"
        self._result.rollbacks = sum(bool(found.rollback) for found in self._result.devices)
        self._show.say(f"{self._result.rollbacks} devices rolled back to {second.version}")

    async def _limit(self, devices: list[Device], rate: int) -> None:
        """Narrow downlinks to so many bytes per second; 0 takes the limit away."""
        for device in devices:
            await asyncio.to_thread(
                device.api.request, "PATCH", "/v1/config", {"download_limit_bytes_s": rate}
            )

    # --- act 4: a hostile member -------------------------------------------------------------------

    async def _attack(self, old_timestamp: bytes) -> None:
        through = self.devices[0]
        unseen = await self._sign(payload.UNSEEN)
        self._deployment = unseen.deployment
        attacker = await self._start_attacker(unseen, old_timestamp)
        await asyncio.to_thread(self._publisher.publish_metadata_through, through.api)
        self._show.say(
            f"published through {through.name}: {payload.RELEASE} {unseen.version}, signed; only a hostile member has content"
        )
        await self._until(
            "every attack refused by all",
            lambda: all(
                device.refusals(reason, attacker) for device in self.devices for _, reason in ATTACKS
            ),
            fail=False,
        )
        for attack, reason in ATTACKS:
            details = {device.name: device.refusals(reason, attacker) for device in self.devices}
            refused = [name for name, said in details.items() if said]
            detail = details[refused[0]][0] if refused else ""
            self._result.refusals.append(
                Refusal(attack=attack, reason=reason, devices=refused, detail=detail)
            )
            self._show.say(f"{attack}: {reason} on {len(refused)} of {len(self.devices)} devices")
            for found in self._result.devices:
                if found.name in refused:
                    found.refused.append(reason)
        for device in self.devices:
            state = device.update(unseen.deployment).state
            if state not in {"unheard", State.WAITING, State.DOWNLOADING}:
                self._result.problems.append(f"{device.name} got as far as {state} with a tampered artifact")

    async def _start_attacker(self, unseen: Signed, old_timestamp: bytes) -> str:
        data = self._workspace.path / "attacker"
        victims = [
            msgspec.convert(
                (await asyncio.to_thread(device.api.request, "GET", "/v1/overlay"))["address"], NodeAddress
            )
            for device in self.devices
        ]
        orders = Orders(
            data=str(data),
            victims=victims,
            replayed=old_timestamp,
            forged=self._publisher.forge_timestamp(),
            targets=[
                Target(
                    sha256=artifact.sha256,
                    length=artifact.length,
                    piece_length=payload.PIECE_BYTES,
                    path=str(self._publisher.repository.content(artifact)),
                )
                for artifact in unseen.artifacts.values()
            ],
        )
        path = data / "orders.json"
        path.write_bytes(msgspec.json.encode(orders))
        await self._processes.start("attacker", "-m", "driftseed.demo.attacker", str(path))
        attacker = Home(data).identity().device
        self._show.say(f"a member of the fleet, {attacker[:10]}, turns hostile")
        return attacker

    # --- for all acts -------------------------------------------------------------------------------

    async def _sign(self, version: str) -> Signed:
        return await asyncio.to_thread(self._publisher.sign, self._library, version)

    def _pairs(self) -> Iterator[tuple[Device, DeviceResult]]:
        return zip(self.devices, self._result.devices, strict=True)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._result.phases[name] = round(time.monotonic() - began, 2)

    def _all_are(self, signed: Signed, wanted: State) -> bool:
        """Whether a deployment has ended as wanted everywhere. Raises WentWrong when it ended otherwise."""
        states = {each.name: each.update(signed.deployment) for each in self.devices}
        for name, update in states.items():
            if update.state in TERMINAL - {wanted, State.CANCELLED}:
                raise WentWrong(
                    f"{signed.version} is {update.state} on {name}: {update.reason} {update.detail}".rstrip()
                )
        return all(update.state == wanted for update in states.values())

    async def _until(
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
        end = time.monotonic() + self._patience_s
        while True:
            await self._look()
            if condition():
                return
            if publishing is not None and publishing.done():
                publishing.result()
            if died := self._processes.died():
                raise WentWrong(f"{died[0].name} ended by itself, status {died[0].process.returncode}")
            if time.monotonic() > end:
                if not fail:
                    return
                states = ", ".join(
                    f"{each.name} {each.update(self._deployment).state}" for each in self.devices
                )
                raise WentWrong(f"after {self._patience_s:.0f} s still not {what}: {states}")
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        gate = asyncio.Semaphore(LOOKING_AT_ONCE)

        async def look(device: Device) -> None:
            async with gate:
                try:
                    await asyncio.to_thread(device.look)
                except DriftseedError as error:
                    self._show.say(f"{device.name} does not answer: {error.message}")

        await asyncio.gather(*(look(device) for device in self.devices if device.on))
        for device, found in self._pairs():
            found.version = device.version
        self._show.look(self.devices, self._deployment)

    async def _compare(self, signed: Signed, *, last: bool = False) -> set[str]:
        """Compare what is installed with what was published; returns the names of devices that differ."""
        wrong = set()
        for arch, group in by_architecture(self.devices).items():
            published = await asyncio.to_thread(self._publisher.published, signed, arch)
            for device in group:
                try:
                    found = await asyncio.to_thread(payload.differences, device.tree, published)
                except OSError as error:
                    raise DeviceError(f"cannot compare {device.tree}: {error}") from error
                self._result.files_compared += len(published)
                if found:
                    wrong.add(device.name)
                    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                    self._result.problems.append(f"{device.name}, {signed.version}: {found[0]}{more}")
                if last:
                    self._result.devices[self.devices.index(device)].files_compared = len(published)
        self._show.say(f"{signed.version} compared with what was published: {len(wrong)} devices differ")
        return wrong


async def _end(task: asyncio.Task[PublishResult]) -> None:
    """Have a task end, whether or not it was waited for."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _names(devices: list[Device]) -> str:
    return " and ".join(device.name for device in devices)
