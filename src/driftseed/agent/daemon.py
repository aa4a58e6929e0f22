"""The agent: a node that decides, installs and reports."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from driftseed import __version__
from driftseed.agent.autorelay import AutoRelay
from driftseed.agent.clock import DeviceClock
from driftseed.agent.config import AgentConfig
from driftseed.agent.inventory import detect
from driftseed.agent.relay import AgentRelay
from driftseed.agent.renewal import MembershipRenewal
from driftseed.agent.reporting import Reporter
from driftseed.agent.updates import Updates
from driftseed.core import wire
from driftseed.core.errors import DeviceError, DiskFull
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.lifecycle import State
from driftseed.core.policy import DeviceFacts, Refuse, Wait
from driftseed.core.reports import REFUSED, InstalledReport, Report, UpdateReport
from driftseed.core.verified import VerifiedFleet
from driftseed.install.installer import Installer
from driftseed.install.runner import ModuleRunner
from driftseed.node.home import Home, MembershipRecord
from driftseed.node.node import Node, NodeOptions
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner
from driftseed.node.transfer import ContentSettings
from driftseed.store.files import free_bytes
from driftseed.store.journal import Journal
from driftseed.trust.membership import Membership

_log = logging.getLogger(__name__)

JOURNAL_FILE: Final = "agent.sqlite"
MODULES_STATE: Final = "modules-state"
"""Directory in which update modules may keep what they like, from one update to the next."""
MODULES_SYSTEM: Final = (Path("/usr/lib/driftseed/modules/v3"), Path("/usr/share/mender/modules/v3"))
"""Where update modules are looked for besides the built-in ones and the configured directories."""


class Agent:
    """A running agent. Make it with ``open``, begin with ``start``, end with ``close``.

    Args:
        home: its data directory, whose lock the caller holds.
        record: its membership.
        config: its settings.
        wall: the system's clock, seconds since 1970.
    """

    def __init__(
        self,
        home: Home,
        record: MembershipRecord,
        config: AgentConfig,
        node_options: NodeOptions,
        journal: Journal,
        wall: Callable[[], float],
    ) -> None:
        self.home = home
        self.record = record
        self.config = config
        self.journal = journal
        self.started = time.monotonic()
        self.inventory: dict[str, str] = {}
        self._said_inventory: dict[str, str] = {}
        self.identity = home.identity()
        self.clock = DeviceClock(journal, record.joined, wall)
        self.membership = Membership(FleetId(record.fleet), {record.enrolment_key}, self.clock)
        self.install_root = Path(config.install_root or home.directory / "installed")
        self.run_dir = home.directory / "run"
        self.runner = ModuleRunner(
            [*map(Path, config.modules_dirs), *MODULES_SYSTEM],
            self.run_dir,
            {
                "DRIFTSEED_INSTALL_ROOT": str(self.install_root),
                "DRIFTSEED_STATE_DIR": str(home.directory / MODULES_STATE),
            },
        )
        self._node_options = node_options
        self._tasks = TaskOwner("agent")
        self.relay = _relay(self.identity.device, config, self.membership.is_revoked)
        self.node: Node
        self.installer: Installer
        self.updates: Updates
        self.reporter: Reporter
        self.renewal: MembershipRenewal

    @classmethod
    async def open(
        cls,
        home: Home,
        config: AgentConfig,
        *,
        inventory: Mapping[str, str],
        wall: Callable[[], float] = time.time,
    ) -> Agent:
        """Load everything and bind the port.

        Args:
            home: a data directory that is a member's.
            config: settings.
            inventory: what the command line says of the device, over the configuration and what is found.
            wall: the system's clock, seconds since 1970.

        Raises:
            NotFound: the directory belongs to no fleet.
            StoreDamaged, DiskFull, UnsafePermissions: the data directory cannot be used.
            PortTaken: the UDP port is.
        """
        record = home.member()
        journal = Journal(home.directory / JOURNAL_FILE)
        options = NodeOptions(
            data=home.directory,
            role="agent",
            fleet=FleetId(record.fleet),
            first_root=record.root,
            certificate=record.certificate,
            bind=config.listen,
            relays=sorted({hub.relay for hub in record.hubs if hub.relay}),
            hubs=record.hubs,
            enrolment_keys=frozenset({record.enrolment_key}),
            neighbours_max=config.neighbours_max,
            lan=config.lan_discovery,
            lan_interfaces=config.lan_interfaces,
            content=content_settings(config),
        )
        async with AsyncExitStack() as undo:
            # Who finds the port taken tries again in the same process, or says so and goes: nothing stays open.
            undo.callback(journal.close)
            agent = cls(home, record, config, options, journal, wall)
            agent._said_inventory = dict(inventory)
            agent.inventory = detect(
                device=agent.identity.device,
                agent_version=__version__,
                overrides={**config.inventory, **inventory},
            )
            if agent.relay is not None:
                await agent.relay.start()
                undo.push_async_callback(agent.relay.close)
            if isinstance(agent.relay, AgentRelay):
                # Reachable itself, it listens on its own relay first.
                options = replace(options, relays=[agent.relay.url], offers_relay=agent.relay.url)
            agent.node = await Node.open(options, agent.identity, agent, agent.clock)
            undo.pop_all()
        agent.reporter = Reporter(
            agent.identity,
            record.certificate,
            agent.membership,
            journal,
            agent.node.ledger,
            agent.node.overlay,
            agent.describe,
        )
        agent.renewal = MembershipRenewal(
            home, agent.node, agent.membership, agent.clock, agent.reporter.show
        )
        agent.installer = Installer(
            journal=journal,
            runner=agent.runner,
            run_dir=agent.run_dir,
            install_root=agent.install_root,
            reboot=agent.reboot,
            clock=agent.clock,
            on_transition=lambda _update, _row: agent.reporter.changed(),
            device_type=agent.inventory.get("compatible", agent.inventory.get("board", "")),
        )
        agent.updates = Updates(
            journal,
            agent.node.contents,
            agent.installer,
            agent.facts,
            agent.clock,
            agent.reporter.changed,
            agent.node.fail,
        )
        return agent

    def start(self) -> None:
        """Begin to work."""
        self.install_root.mkdir(parents=True, exist_ok=True)
        (self.home.directory / MODULES_STATE).mkdir(mode=0o700, exist_ok=True)
        self.installer.remove_leftovers()
        if not self.config.serve_only:
            self.updates.start()
        self.reporter.start()
        self.node.start()
        if isinstance(self.relay, AutoRelay):
            self.relay.attend(self.node)
        self.renewal.start()

    async def close(self) -> None:
        """End everything; the journal knows how to go on."""
        await self._tasks.close()
        await self.renewal.close()
        await self.reporter.close()
        await self.updates.close()
        await self.node.close()
        if self.relay is not None:
            await self.relay.close()
        self.journal.close()

    # --- what the node brings (node.node.Owner) -------------------------------------------------

    async def on_fleet(self, fleet: VerifiedFleet) -> None:
        """The trusted metadata changed."""
        self.membership.follow(fleet)
        if self.relay is not None:
            self.relay.expel()
        self.renewal.look()
        try:
            self.clock.remember(fleet.expires)
        except DiskFull as error:
            _log.warning("the time is not kept", extra={"fields": {"why": error.message}})
        if self.config.serve_only:
            self._serve_all(fleet)
        else:
            self.updates.fleet_changed(fleet)

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """A member hands on a report."""
        self.reporter.take(envelope, peer)

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """A hub has stored a report."""
        self.reporter.stored(message, peer)

    def on_peer(self, peer: OverlayPeer) -> None:
        """An overlay link came up."""
        if self.relay is not None:
            self.relay.met(peer.device)
        self.reporter.peer_came(peer)
        if peer.role == "hub":
            self.renewal.look()

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """Reports that it had not confirmed go to the next hub."""

    def _serve_all(self, fleet: VerifiedFleet) -> None:
        """Proxy mode: everything that is deployed is fetched, nothing installed."""
        for deployment in fleet.deployments:
            for artifact in deployment.release.manifest.artifacts:
                self._tasks.spawn(self.node.contents.keep(deployment.release, artifact), "keep")

    def reconfigure(self, config: AgentConfig) -> None:
        """Take over what can change while running; the rest waits for a restart."""
        self.config = config
        self.inventory = detect(
            device=self.identity.device,
            agent_version=__version__,
            overrides={**config.inventory, **self._said_inventory},
        )
        self.updates.reconsider()
        self.reporter.changed()

    # --- about this device ----------------------------------------------------------------------

    @property
    def labels(self) -> dict[str, str]:
        """What operators say of this device: signed metadata's word, else what it joined with."""
        return self.membership.labels(self.identity.device, self.record.labels)

    def facts(self) -> DeviceFacts:
        """What decisions go by."""
        return DeviceFacts(
            device=self.identity.device,
            inventory=self.inventory,
            labels=self.labels,
            modules=frozenset(self.runner.names()),
            free_bytes=free_bytes(self.home.directory),
            held=frozenset(self.node.contents.store.digests()),
        )

    async def reboot(self) -> None:
        """Reboot the device as configured. Raises DeviceError when it is not configured or fails."""
        command = self.config.reboot_command
        if not command or shutil.which(command[0]) is None:
            raise DeviceError(
                "a module asks for a reboot, and no reboot command is configured that exists",
                hint='driftseed agent config reboot_command=\'["systemctl", "reboot"]\'',
            )
        process = await asyncio.create_subprocess_exec(*command)
        async with asyncio.timeout(60):
            status = await process.wait()
        if status != 0:
            raise DeviceError(f"the reboot command {command[0]} ended with status {status}")

    def describe(self, sequence: int) -> Report:
        """What a report says now."""
        now = self.clock()
        return Report(
            device=self.identity.device,
            sequence=sequence,
            time=now,
            agent_version=__version__,
            inventory=self.inventory,
            labels=self.labels,
            installed={
                name: InstalledReport(version=each.version, manifest_sha256=each.manifest_sha256)
                for name, each in self.journal.installed().items()
            },
            updates=self.update_reports(now),
            refusals=dict(self.node.ledger.refusal_counts),
            clock_skew_s=self.node.clock_skew_s,
            free_bytes=free_bytes(self.home.directory),
        )

    def update_reports(self, now: float) -> list[UpdateReport]:
        """Every update of this device, the ones that are held back included, newest first."""
        reports = []
        for stored in self.journal.updates():
            row, transfer = self.updates.live(stored)
            held = self.updates.held_back.get(row.deployment_id)
            stopped = self.updates.stopped.get(row.deployment_id)
            reason, detail = row.reason, row.detail
            if stopped is not None:
                reason, detail = stopped.reason, stopped.message
            elif transfer is not None and transfer.problem:
                reason, detail = transfer.problem, transfer.detail
            elif held is not None and not reason:
                reason, detail = held.reason, held.detail
            reports.append(
                UpdateReport(
                    deployment=row.deployment_id,
                    release=row.release,
                    version=row.version,
                    state=row.state,
                    attempts=row.attempts,
                    progress=row.progress,
                    reason=reason,
                    detail=detail,
                    started=max(row.started, 0.0),
                    finished=row.finished,
                    bytes_from=dict(row.bytes_from),
                    seconds=max(0.0, (row.finished or now) - row.started),
                )
            )
        known = {each.deployment for each in reports}
        for deployment_id, held in self.updates.held_back.items():
            if deployment_id not in known:
                reports.append(_held_back(deployment_id, held, now))
        return sorted(reports, key=lambda each: -each.started)


def _held_back(deployment_id: str, held: Wait | Refuse, now: float) -> UpdateReport:
    deployment = held.deployment.deployment
    return UpdateReport(
        deployment=deployment_id,
        release=deployment.release,
        version=deployment.version,
        state=State.WAITING if isinstance(held, Wait) else REFUSED,
        reason=held.reason,
        detail=held.detail,
        started=now,
    )


def _relay(
    own: DeviceId, config: AgentConfig, expelled: Callable[[DeviceId], bool]
) -> AgentRelay | AutoRelay | None:
    if config.relay == "auto":
        return AutoRelay(own, config.relay_listen, config.relay_url, expelled)
    return AgentRelay(own, config.relay_listen, config.relay_url, expelled) if config.relay_listen else None


def content_settings(config: AgentConfig) -> ContentSettings:
    """What the content store and the engine are told."""
    return ContentSettings(
        quota_bytes=config.content_quota_bytes,
        upload_limit=config.upload_limit_bytes_s,
        download_limit=config.download_limit_bytes_s,
        relay_budget=config.relay_budget_bytes_s,
        super_seed={"auto": None, "always": True, "never": False}[config.super_seed],
    )
