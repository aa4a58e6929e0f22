"""A whole rollout with real agents and hubs over shaped lines, while things happen to them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, assert_never
from uuid import uuid4

from driftseed.bench.ask import SocketApi
from driftseed.core.errors import AgentUnreachable, LabFailed
from driftseed.core.ids import parse_safe_name
from driftseed.lab import scenario as script
from driftseed.lab.fleet import Hub, LabFleet
from driftseed.lab.processes import HOME, START_S, Child, Processes
from driftseed.lab.scenario import Scenario
from driftseed.lab.topology import Device, Site, World
from driftseed.publish.artifacts import split_artifact
from driftseed.publish.fleet import add_hub, invite
from driftseed.publish.release import ReleaseRequest, plan_release
from driftseed.store.files import write_secret

PUBLISHER_SITE: Final = Site(name="publisher")
STARTING_AT_ONCE: Final = 3
POLL_S: Final = 0.25
"""Seconds between questions to an agent, which tells how it is doing only when asked."""
RELEASE: Final = "firmware"
_TERMINAL: Final = frozenset({"succeeded", "failed", "rolled-back", "inconsistent"})


@dataclass(slots=True)
class Agent:
    """A device with its agent."""

    device: Device
    data: Path
    api: SocketApi
    child: Child | None = None
    update: Mapping[str, Any] = field(default_factory=dict)
    succeeded_s: float | None = None
    """Seconds from publishing until it was seen to have succeeded."""


@dataclass(slots=True)
class Happened:
    """An event that took place."""

    at_s: float
    what: str
    found_s: float | None = None
    """After a move: seconds until the agent knew its new outer address from a hub."""


class Rollout:
    """One run of a scenario.

    Args:
        scenario: what to do.
        processes: what starts and ends them.
    """

    def __init__(self, scenario: Scenario, processes: Processes) -> None:
        self._scenario = scenario
        self._processes = processes
        self.world = World.build([PUBLISHER_SITE, *scenario.sites()])
        self._fleet = LabFleet(processes)
        self._hubs: dict[str, Hub] = {}
        self._agents: dict[str, Agent] = {}
        self._ticket = HOME / "ticket"
        self._began = 0.0
        self._happened: list[Happened] = []

    async def run(self) -> dict[str, Any]:
        """Do it all; the figures.

        Raises:
            LabFailed: a process did not start, or publishing failed.
        """
        await self._start()
        self._release()
        before = {site.name: self.world.uplink_bytes(site.name) for site in self._scenario.site}
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            events = [tasks.create_task(self._event(each)) for each in self._scenario.event]
            publishing = tasks.create_task(self._publish())
            try:
                async with asyncio.timeout(self._scenario.expect.within_s):
                    await asyncio.gather(*(self._watch(agent) for agent in self._agents.values()))
            except TimeoutError:
                _say("not all devices are done in time")
            seconds = time.monotonic() - self._began
            for task in (*events, publishing):
                task.cancel()
        used = {
            name: [now - then for now, then in zip(self.world.uplink_bytes(name), earlier, strict=True)]
            for name, earlier in before.items()
        }
        return self._figures(seconds, used)

    # --- before ---------------------------------------------------------------------------------

    async def _start(self) -> None:
        for spec in self._scenario.hub:
            hub = await self._fleet.start_hub(self.world.device(spec.name))
            self._hubs[spec.name] = hub
            add_hub(self._fleet.repository, hub.address)
        invited = invite(
            self._fleet.repository,
            uses=script.DEVICES_MAX,
            lifetime_s=3600.0,
            labels={},
            hubs=[hub.address for hub in self._hubs.values()],
            now=time.time(),
        )
        write_secret(self._ticket, invited.ticket.encode("ascii"))
        slots = asyncio.Semaphore(STARTING_AT_ONCE)

        async def one(device: Device) -> None:
            async with slots:
                self._agents[device.name] = await self._join(device)

        devices = [each for site in self._scenario.site for each in self.world.routers[site.name].devices]
        await asyncio.gather(*(one(device) for device in devices))
        _say(f"{len(self._agents)} agents have joined")

    async def _join(self, device: Device) -> Agent:
        data = HOME / device.name
        joining = await self._processes.start(
            f"{device.name}-join",
            device.namespace,
            ["-m", "driftseed", "agent", "join", f"@{self._ticket}", "--data", str(data)],
        )
        await self._ended_well(joining, START_S)
        agent = Agent(device, data, SocketApi(data / "agent.sock"))
        await self._run_agent(agent)
        return agent

    async def _run_agent(self, agent: Agent) -> None:
        """Start it, and wait until it has a hub."""
        agent.child = await self._processes.start(
            agent.device.name,
            agent.device.namespace,
            ["-m", "driftseed", "agent", "run", "--data", str(agent.data)],
        )
        deadline = time.monotonic() + START_S
        while not (await self._ask(agent, "/v1/status")).get("hubs"):
            if time.monotonic() > deadline or agent.child.process.returncode is not None:
                raise agent.child.failure("has no hub")
            await asyncio.sleep(POLL_S)

    def _release(self) -> None:
        payload = HOME / "payload.bin"
        payload.write_bytes(os.urandom(self._scenario.payload_bytes))
        plan = plan_release(
            ReleaseRequest(
                name=parse_safe_name(RELEASE, "release name"),
                version=parse_safe_name("1.0", "version"),
                module=parse_safe_name("single-file", "module"),
                artifacts=[split_artifact(str(payload))],
                meta={"path": f"{RELEASE}.bin"},
            ),
            keys=None,
            created="2026-01-01T00:00:00Z",
            scratch=HOME,
            progress=lambda _what, _done: None,
        )
        repository = self._fleet.repository
        files: dict[str, tuple[Path, bytes]] = {
            sha: (each.path, each.torrent) for sha, each in plan.files.items()
        }
        repository.add_release(plan.manifest, files)
        repository.add_deployment(deployment_id=uuid4().hex, release=RELEASE, version="1.0", selector="")

    # --- meanwhile ------------------------------------------------------------------------------

    async def _publish(self) -> None:
        device = self.world.device(PUBLISHER_SITE.name)
        command = ["-m", "driftseed", "publish", str(HOME / "lab"), "--via", f"@{self._ticket}"]
        child = await self._processes.start("publish", device.namespace, command)
        await self._ended_well(child, self._scenario.expect.within_s)
        _say(f"published after {time.monotonic() - self._began:.1f} s")

    async def _watch(self, agent: Agent) -> None:
        """Until its update came to an end."""
        while agent.succeeded_s is None:
            updates = (await self._ask(agent, "/v1/updates")).get("updates", [])
            if updates:
                agent.update = updates[0]
            if agent.update.get("state") == "succeeded":
                agent.succeeded_s = time.monotonic() - self._began
                return
            if agent.update.get("state") in _TERMINAL:
                return
            await asyncio.sleep(POLL_S)

    async def _event(self, event: script.Event) -> None:
        await asyncio.sleep(event.at_s)
        note = Happened(round(time.monotonic() - self._began, 2), type(event).__name__)
        self._happened.append(note)
        match event:
            case script.Cut(site=site, for_s=for_s):
                await self._line(site, up=False)
                await asyncio.sleep(for_s)
                await self._line(site, up=True)
            case script.Flap(site=site, up_s=up_s, down_s=down_s):
                while True:
                    await asyncio.sleep(up_s)
                    await self._line(site, up=False)
                    await asyncio.sleep(down_s)
                    await self._line(site, up=True)
            case script.Move(device=name, to=site):
                await self._move(name, site, note)
            case script.ForgetBindings(site=site):
                await asyncio.to_thread(self.world.forget_bindings, site)
            case _:
                await self._power(event)

    async def _power(self, event: script.PowerEvent) -> None:
        match event:
            case script.KillHub(hub=name):
                await self._hubs[name].child.kill()
            case script.StartHub(hub=name):
                self._hubs[name] = await self._fleet.start_hub(self.world.device(name))
            case script.KillDevice(device=name):
                if (child := self._agents[name].child) is not None:
                    await child.kill()
            case script.StartDevice(device=name):
                await self._run_agent(self._agents[name])
            case _:
                assert_never(event)

    async def _line(self, site: str, *, up: bool) -> None:
        await asyncio.to_thread(self.world.set_line, site, up=up)

    async def _move(self, name: str, site: str, note: Happened) -> None:
        """Carry a device elsewhere, and wait until it knows where it is now."""
        agent = self._agents[name]
        began = time.monotonic()
        await asyncio.to_thread(self.world.move, agent.device, site)
        outer = self.world.routers[site].wan
        while True:
            answer = await self._ask(agent, "/v1/overlay")
            if any(str(addr).startswith(f"{outer}:") for addr in answer.get("observed", [])):
                note.found_s = round(time.monotonic() - began, 2)
                return
            await asyncio.sleep(POLL_S)

    # --- afterwards -----------------------------------------------------------------------------

    def _figures(self, seconds: float, used: Mapping[str, list[int]]) -> dict[str, Any]:
        size = self._scenario.payload_bytes
        sources: dict[str, int] = {}
        for agent in self._agents.values():
            for source, count in agent.update.get("bytes_from", {}).items():
                sources[source] = sources.get(source, 0) + int(count)
        figures: dict[str, Any] = {
            "scenario": self._scenario.name,
            "devices": len(self._agents),
            "payload_bytes": size,
            "succeeded": sum(agent.succeeded_s is not None for agent in self._agents.values()),
            "seconds": round(seconds, 2),
            "origin_copies": round(_copies(sources, "hub/", size), 3),
            "received_copies": round(_copies(sources, "", size) / len(self._agents), 3),
            "bytes_from": sources,
            "uplinks": {
                name: {
                    "sent_bytes": sent,
                    "received_bytes": received,
                    "received_copies": round(received / size, 3),
                }
                for name, (sent, received) in used.items()
            },
            "events": [
                {"at_s": each.at_s, "what": each.what, "found_s": each.found_s} for each in self._happened
            ],
            "by_device": {
                name: {
                    "state": agent.update.get("state", "waiting"),
                    "seconds": None if agent.succeeded_s is None else round(agent.succeeded_s, 2),
                    "reason": agent.update.get("reason", ""),
                    "detail": agent.update.get("detail", ""),
                    "bytes_from": dict(agent.update.get("bytes_from", {})),
                }
                for name, agent in sorted(self._agents.items())
            },
        }
        figures["short_of"] = shortfalls(self._scenario.expect, figures)
        return figures

    async def _ask(self, agent: Agent, path: str) -> dict[str, Any]:
        """What an agent says; nothing while it is down."""
        try:
            return await asyncio.to_thread(agent.api.get, path)
        except AgentUnreachable:
            return {}

    async def _ended_well(self, child: Child, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await child.process.communicate()
        except TimeoutError:
            raise child.failure(f"did not end in {timeout_s:g} s") from None
        if child.process.returncode != 0:
            raise child.failure(f"ended with status {child.process.returncode}")


def shortfalls(expected: script.Expected, figures: Mapping[str, Any]) -> list[str]:
    """What did not come out as it has to, in words."""
    found = []
    if figures["succeeded"] != figures["devices"]:
        found.append(f"{figures['succeeded']} of {figures['devices']} devices were updated in time")
    bounds = (
        ("origin copies", expected.origin_copies_max, figures["origin_copies"]),
        ("received copies", expected.received_copies_max, figures["received_copies"]),
        *(
            (f"copies over the uplink of {name}", expected.uplink_copies_max, uplink["received_copies"])
            for name, uplink in figures["uplinks"].items()
        ),
    )
    found += [f"{what}: {value}, at most {most}" for what, most, value in bounds if most and value > most]
    return found


def _copies(sources: Mapping[str, int], prefix: str, size: int) -> float:
    return sum(count for source, count in sources.items() if source.startswith(prefix)) / size


async def rollout(arguments: Any) -> Any:
    """The experiment: a scenario as JSON values, to its figures."""
    processes = Processes()
    run = Rollout(script.from_json(arguments), processes)
    try:
        return await run.run()
    except* LabFailed as failures:
        raise failures.exceptions[0] from None
    finally:
        await processes.close()
        run.world.close()


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()
