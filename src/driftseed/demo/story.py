"""The demo, act by act: everything is done by the same processes and calls that a real fleet uses."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from driftseed.core.lifecycle import TERMINAL, State
from driftseed.core.model import NodeAddress
from driftseed.demo import payload
from driftseed.demo.attacker import Orders, Target
from driftseed.demo.machines import Device, by_architecture
from driftseed.demo.publisher import Signed
from driftseed.demo.result import HubDeath, Refusal
from driftseed.demo.stage import Stage, WentWrong
from driftseed.node.home import Home
from driftseed.publish.send import PublishResult

NARROW_S: Final = 24.0
"""Seconds that version 2 would take on most devices: their downlinks are so narrow until the hub is dead, or on
a fast machine nobody would see a middle of the rollout."""
ATTACKS: Final = (
    ("an old timestamp, replayed", "metadata-replayed"),
    ("metadata signed by the build key alone", "metadata-unsigned"),
    ("a tampered artifact", "bad-piece"),
)


class Story:
    """One run.

    Args:
        stage: nothing has happened on it.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def run(self) -> None:
        """All acts, in order. Raises WentWrong or DriftseedError."""
        with self._stage.phase("start"):
            await self._stage.set_up()
        with self._stage.phase("version 1"):
            first = await self._install_first()
        with self._stage.phase("version 2"):
            old_timestamp = self._stage.publisher.timestamp()
            second = await self._lose_the_hub(first)
        with self._stage.phase("version 3"):
            await self._roll_back(second)
        with self._stage.phase("attacks"):
            await self._attack(old_timestamp)
        with self._stage.phase("comparison"):
            await self._stage.compare(second, last=True)

    # --- act 1: version 1 ---------------------------------------------------------------------------

    async def _install_first(self) -> Signed:
        first = await self._sign(payload.GOOD)
        size = first.bytes / len(first.artifacts) / 1e6
        self._stage.show.say(
            f"published: {payload.RELEASE} {first.version}, {len(self._stage.library.files)} files from {self._stage.library.root}, "
            f"{size:.1f} MB for each of {', '.join(first.artifacts)}"
        )
        self._stage.deployment = first.deployment
        published = asyncio.create_task(self._stage.publisher.publish(self._stage.patience_s), name="publish")
        try:
            await self._stage.until(
                "version 1 on all", lambda: self._all_are(first, State.SUCCEEDED), published
            )
            await published
        finally:
            await _end(published)
        for device, found in self._stage.pairs():
            found.took(device.update(first.deployment))
        self._stage.result.count_origin(first.bytes)
        self._stage.result.origin_copies_first = self._stage.result.origin_copies
        await self._stage.compare(first)
        return first

    # --- act 2: version 2, and no hub any more --------------------------------------------------------

    async def _lose_the_hub(self, first: Signed) -> Signed:
        groups = by_architecture(self._stage.devices).values()
        off = [group[-1] for group in groups if len(group) > 1]
        quick = [group[0] for group in groups]
        for device in off:
            await self._stage.switch_off(device)
        self._stage.show.say(f"{_names(off)} switched off")
        narrow = [device for device in self._stage.devices if device.on and device not in quick]
        await self._stage.limit(narrow, int(first.bytes / len(first.artifacts) / NARROW_S))
        second = await self._sign(payload.NEXT)
        self._stage.deployment = second.deployment
        version = self._stage.publisher.repository.timestamp_version
        published = asyncio.create_task(self._stage.publisher.publish(self._stage.patience_s), name="publish")
        self._stage.show.say(
            f"published: {payload.RELEASE} {second.version}, without the modules that PEP 594 retired"
        )
        try:
            await self._stage.until(
                "version 2 on a few devices",
                lambda: (
                    published.done()
                    and any(device.timestamp >= version for device in self._stage.devices)
                    and {device.arch for device in self._holders(second)}
                    >= {each.arch for each in self._stage.devices}
                ),
            )
            await published
        finally:
            await _end(published)
        await self._kill_hub(second, version, off)
        await self._stage.limit(narrow, 0)
        await asyncio.gather(*map(self._stage.switch_on, off))
        self._stage.show.say(
            f"{_names(off)} switched on again: there is no hub, but they remember their neighbours"
        )
        await self._stage.until(
            "version 2 on all, without a hub", lambda: self._all_are(second, State.SUCCEEDED)
        )
        for device, found in self._stage.pairs():
            found.took(device.update(second.deployment))
            found.was_off = device in off
        self._stage.result.count_origin(second.bytes)
        await self._stage.compare(second)
        return second

    async def _kill_hub(self, second: Signed, version: int, off: list[Device]) -> None:
        status = await self._stage.processes.kill(self._stage.hub)
        holders = self._holders(second)
        self._stage.result.hub = HubDeath(
            at=round(time.monotonic() - self._stage.began, 2),
            exit_status=status,
            metadata=[each.name for each in self._stage.devices if each.on and each.timestamp >= version],
            content=[each.name for each in holders],
            fetching={
                each.name: round(each.update(second.deployment).progress, 3)
                for each in self._stage.devices
                if each.on and each not in holders
            },
            off=[each.name for each in off],
        )
        death = self._stage.result.hub
        self._stage.show.say(
            f"the hub is KILLED (process {self._stage.hub.process.pid}, status {status}): {len(death.metadata)} devices have "
            f"the metadata, {len(death.content)} the content, {len(death.fetching)} parts of it, {len(off)} are off"
        )

    def _holders(self, signed: Signed) -> list[Device]:
        """Devices that are on and have all of its content."""
        fetching = {"unheard", State.WAITING, State.DOWNLOADING}
        return [
            each
            for each in self._stage.devices
            if each.on and each.update(signed.deployment).state not in fetching
        ]

    # --- act 3: a version that does harm ---------------------------------------------------------------

    async def _roll_back(self, second: Signed) -> None:
        through = self._stage.devices[0]
        third = await self._sign(payload.BROKEN)
        self._stage.deployment = third.deployment
        self._stage.show.say(
            f"published through {through.name}: {payload.RELEASE} {third.version}, whose health check will fail"
        )
        await asyncio.to_thread(self._stage.publisher.publish_through, through.api)
        await self._stage.until(
            "version 3 rolled back on all", lambda: self._all_are(third, State.ROLLED_BACK)
        )
        wrong = await self._stage.compare(second)
        for device, found in self._stage.pairs():
            update = device.update(third.deployment)
            if update.reason != "health-check-failed":
                self._stage.result.problems.append(
                    f"{device.name} rolled back for {update.reason}: {update.detail}"
                )
            elif device.version == second.version and device.name not in wrong:
                found.rollback = f"{update.reason}: {update.detail}"
        self._stage.result.rollbacks = sum(bool(found.rollback) for found in self._stage.result.devices)
        self._stage.show.say(f"{self._stage.result.rollbacks} devices rolled back to {second.version}")

    # --- act 4: a hostile member -------------------------------------------------------------------

    async def _attack(self, old_timestamp: bytes) -> None:
        through = self._stage.devices[0]
        unseen = await self._sign(payload.UNSEEN)
        self._stage.deployment = unseen.deployment
        attacker = await self._start_attacker(unseen, old_timestamp)
        await asyncio.to_thread(self._stage.publisher.publish_metadata_through, through.api)
        self._stage.show.say(
            f"published through {through.name}: {payload.RELEASE} {unseen.version}, signed; only a hostile member has content"
        )
        await self._stage.until(
            "every attack refused by all",
            lambda: all(
                device.refusals(reason, attacker) for device in self._stage.devices for _, reason in ATTACKS
            ),
            fail=False,
        )
        for attack, reason in ATTACKS:
            details = {device.name: device.refusals(reason, attacker) for device in self._stage.devices}
            refused = [name for name, said in details.items() if said]
            detail = details[refused[0]][0] if refused else ""
            self._stage.result.refusals.append(
                Refusal(attack=attack, reason=reason, devices=refused, detail=detail)
            )
            self._stage.show.say(
                f"{attack}: {reason} on {len(refused)} of {len(self._stage.devices)} devices"
            )
            for found in self._stage.result.devices:
                if found.name in refused:
                    found.refused.append(reason)
        for device in self._stage.devices:
            state = device.update(unseen.deployment).state
            if state not in {"unheard", State.WAITING, State.DOWNLOADING}:
                self._stage.result.problems.append(
                    f"{device.name} got as far as {state} with a tampered artifact"
                )

    async def _start_attacker(self, unseen: Signed, old_timestamp: bytes) -> str:
        data = self._stage.workspace.path / "attacker"
        victims = [
            msgspec.convert(
                (await asyncio.to_thread(device.api.request, "GET", "/v1/overlay"))["address"], NodeAddress
            )
            for device in self._stage.devices
        ]
        orders = Orders(
            data=str(data),
            victims=victims,
            replayed=old_timestamp,
            forged=self._stage.publisher.forge_timestamp(),
            targets=[
                Target(
                    sha256=artifact.sha256,
                    length=artifact.length,
                    piece_length=payload.PIECE_BYTES,
                    path=str(self._stage.publisher.repository.content(artifact)),
                )
                for artifact in unseen.artifacts.values()
            ],
        )
        path = data / "orders.json"
        path.write_bytes(msgspec.json.encode(orders))
        await self._stage.processes.start("attacker", "-m", "driftseed.demo.attacker", str(path))
        attacker = Home(data).identity().device
        self._stage.show.say(f"a member of the fleet, {attacker[:10]}, turns hostile")
        return attacker

    # --- for all acts -------------------------------------------------------------------------------

    async def _sign(self, version: str) -> Signed:
        return await asyncio.to_thread(self._stage.publisher.sign, self._stage.library, version)

    def _all_are(self, signed: Signed, wanted: State) -> bool:
        """Whether a deployment has ended as wanted everywhere. Raises WentWrong when it ended otherwise."""
        states = {each.name: each.update(signed.deployment) for each in self._stage.devices}
        for name, update in states.items():
            if update.state in TERMINAL - {wanted, State.CANCELLED}:
                raise WentWrong(
                    f"{signed.version} is {update.state} on {name}: {update.reason} {update.detail}".rstrip()
                )
        return all(update.state == wanted for update in states.values())


async def _end(task: asyncio.Task[PublishResult]) -> None:
    """Have a task end, whether or not it was waited for."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _names(devices: list[Device]) -> str:
    return " and ".join(device.name for device in devices)
