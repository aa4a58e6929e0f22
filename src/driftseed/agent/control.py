"""What the local API asks of a running agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from driftseed import __version__
from driftseed.agent.config import AgentConfig, ConfigStore, as_object, restart_needed
from driftseed.agent.daemon import Agent, content_settings
from driftseed.core import limits
from driftseed.core.apiviews import (
    AgentStatus,
    Announced,
    ConfigView,
    HistoryEntry,
    InstalledView,
    OverlayView,
    PeerView,
    ProblemView,
    UpdateDetail,
    UpdateView,
)
from driftseed.core.errors import ClockWrong, Conflict, FileMissing, MetadataReplayed, NotFound
from driftseed.core.ids import Digest
from driftseed.core.lifecycle import BY_STATE, Phase
from driftseed.core.metrics import Metrics
from driftseed.core.reports import UpdateReport
from driftseed.node import views
from driftseed.store.files import free_bytes
from driftseed.trust.device import FleetTrust, MetadataSource


class Control:
    """Answers for one agent (``agent.api.AgentControl``), and takes submissions over.

    Args:
        agent: running.
        configs: where its settings are kept.
    """

    def __init__(self, agent: Agent, configs: ConfigStore) -> None:
        self._agent = agent
        self._configs = configs
        self._running = agent.config

    async def status(self) -> AgentStatus:
        """How it does."""
        agent, node = self._agent, self._agent.node
        fleet = node.fleet
        address = node.own_address()
        peers = node.overlay.peers()
        return AgentStatus(
            device=agent.identity.device,
            fleet=agent.record.fleet,
            fleet_name=agent.record.name,
            role="agent",
            agent_version=__version__,
            uptime_s=time.monotonic() - agent.started,
            timestamp_version=node.keeper.ready,
            snapshot_version=fleet.snapshot_version if fleet else 0,
            metadata_expires=views.expires_view(node),
            hubs=sum(peer.role == "hub" for peer in peers),
            neighbours=sum(peer.role == "agent" for peer in peers),
            installed={
                name: InstalledView(
                    version=each.version,
                    manifest_sha256=each.manifest_sha256,
                    deployment=each.deployment,
                    at=each.at,
                )
                for name, each in agent.journal.installed().items()
            },
            labels=agent.labels,
            inventory=agent.inventory,
            free_bytes=free_bytes(agent.home.directory),
            content=views.content_view(node),
            clock_skew_s=node.clock_skew_s,
            counters=views.counters_view(node),
            refusals=views.refusals_view(node),
            engine=views.engine_view(node),
            addresses=address.addrs,
            relay=address.relay,
            problems=self._problems(),
        )

    def _problems(self) -> list[ProblemView]:
        agent = self._agent
        problems = views.time_problems(agent.node, agent.config.clock_skew_max_s)
        if agent.clock.behind_s > limits.CLOCK_SKEW_MAX_S:
            problems.append(
                ProblemView(
                    reason=ClockWrong.reason,
                    message=f"this clock is {agent.clock.behind_s:.0f} s behind a time that is over for certain",
                    hint="set the clock",
                )
            )
        problems += [
            ProblemView(
                reason=held.reason,
                message=f"{held.deployment.deployment.release} {held.deployment.deployment.version}: {held.detail}",
                hint="driftseed agent updates",
            )
            for held in agent.updates.held_back.values()
        ]
        return problems

    async def overlay(self) -> OverlayView:
        """How it can be reached, and whom it knows."""
        node = self._agent.node
        fleet = node.fleet
        hubs = {hub.device: hub for hub in (*self._agent.record.hubs, *(fleet.hubs if fleet else ()))}
        return OverlayView(
            device=node.device,
            addresses=node.endpoint.bound,
            observed=sorted(set(node.whereabouts.observed.values())),
            relay=node.endpoint.relay,
            address=node.own_address(),
            hubs=list(hubs.values()),
            known_devices=len(node.book),
        )

    async def peers(self) -> Sequence[PeerView]:
        """Its connections."""
        return views.peers_view(self._agent.node)

    async def updates(self) -> Sequence[UpdateView]:
        """Its updates, newest first."""
        agent = self._agent
        changed = {row.deployment_id: row.changed for row in agent.journal.updates()}
        return [
            _view(each, changed.get(each.deployment, each.started))
            for each in agent.update_reports(agent.clock())
        ]

    async def update(self, deployment: str) -> UpdateDetail:
        """One update with its history. Raises NotFound."""
        for view in await self.updates():
            if view.deployment == deployment:
                history = [
                    HistoryEntry(at=step.at, state=step.next, event=step.event)
                    for step in self._agent.journal.history(deployment)
                ]
                fields = {name: getattr(view, name) for name in UpdateView.__struct_fields__}
                return UpdateDetail(**fields, history=history)
        raise NotFound(f"no update of deployment {deployment}", hint="driftseed agent updates")

    async def remove_update(self, deployment: str) -> None:
        """Forget a finished update and its content. Raises NotFound or Conflict."""
        journal = self._agent.journal
        row = journal.update(deployment)
        if row is None:
            raise NotFound(f"no update of deployment {deployment}", hint="driftseed agent updates")
        if BY_STATE[row.state].phase is not Phase.OVER:
            raise Conflict(f"{row.release} {row.version} is {row.state}", hint="wait until it has ended")
        if any(each.deployment == deployment for each in journal.installed().values()):
            raise Conflict(f"{row.release} {row.version} is installed", hint="deploy another version first")
        journal.remove(deployment)
        digest = Digest(row.artifact_sha256)
        in_use = {each.artifact_sha256 for each in journal.installed().values()}
        in_use |= {each.artifact_sha256 for each in journal.updates()}
        contents = self._agent.node.contents
        if digest not in in_use and contents.transfer(digest) is None:
            await contents.engine.remove(digest)
            contents.store.remove(digest)
            self._agent.node.overlay.state_changed()

    async def announce(self) -> Announced:
        """Pass the newest timestamp on to every neighbour again. Raises FileMissing when there is none yet."""
        node = self._agent.node
        if node.newest_notice() is None:
            raise FileMissing(
                "this device has no metadata yet", hint="it comes with the first link to anyone"
            )
        return Announced(neighbours=node.overlay.announce(), timestamp_version=node.keeper.known)

    async def config(self) -> ConfigView:
        """Its settings."""
        wanted = self._configs.config
        return ConfigView(
            config=as_object(wanted),
            defaults=as_object(AgentConfig()),
            restart=restart_needed(self._running, wanted),
        )

    async def change_config(self, changes: Mapping[str, Any]) -> ConfigView:
        """Change settings, all or none. Raises ConfigInvalid or DiskFull."""
        wanted = self._configs.change(changes)
        node = self._agent.node
        await node.contents.configure(content_settings(wanted))
        node.overlay.neighbours_max = wanted.neighbours_max
        node.overlay.look_around()
        self._agent.reconfigure(wanted)
        return await self.config()

    async def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        metrics = Metrics()
        views.node_metrics(self._agent.node, metrics)
        updates = metrics.gauge("driftseed_updates", "Updates of this device, by state.", ["state"])
        for row in self._agent.journal.updates():
            updates.add(1, state=row.state)
        return metrics.render()

    # --- submissions (agent.submissions.SubmissionTaker) ------------------------------------------

    async def named(self, source: MetadataSource) -> Mapping[Digest, int]:
        """Verify staged metadata without taking it over; returns the length of each content it names.

        Raises:
            TrustError: it does not verify. FileMissing: it is not complete.
        """
        record = self._agent.record

        def verify() -> dict[Digest, int]:
            scratch = self._agent.home.directory / "submissions" / "trust"
            trust = FleetTrust(scratch, record.root, self._agent.clock)
            fleet = trust.refresh(source)
            return {
                Digest(artifact.sha256): artifact.length
                for deployment in fleet.deployments
                for artifact in deployment.release.manifest.artifacts
            }

        return await asyncio.to_thread(verify)

    def holds(self, digest: Digest) -> bool:
        """Whether a content is on this device already."""
        return self._agent.node.contents.store.has(digest)

    async def take_over(self, source: MetadataSource, contents: Mapping[Digest, Path]) -> int:
        """Trust staged metadata from now on, keep the contents, tell the neighbours.

        Raises:
            TrustError, FileMissing: nothing was taken over. DeviceError: it could not be kept.
        """
        node = self._agent.node
        try:
            fleet = await node.keeper.refresh(source)
        except MetadataReplayed:
            # A stick that lay in a drawer: what it brings is still good if what is trusted now wants it.
            known = node.fleet
            wanted = (
                {a.sha256 for d in known.deployments for a in d.release.manifest.artifacts}
                if known
                else set()
            )
            if known is None or not contents or not wanted >= set(contents):
                raise
            fleet = known
        for digest, path in contents.items():
            await node.contents.take_in(digest, path)
        node.overlay.announce()
        return fleet.timestamp_version


def _view(report: UpdateReport, changed: float) -> UpdateView:
    return UpdateView(
        deployment=report.deployment,
        release=report.release,
        version=report.version,
        state=report.state,
        progress=report.progress,
        reason=report.reason,
        detail=report.detail,
        attempts=report.attempts,
        started=report.started,
        changed=changed,
        finished=report.finished,
        seconds=report.seconds,
        bytes_from=report.bytes_from,
    )
