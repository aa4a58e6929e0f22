"""Whom a node knows, whom it dials, and which links it gives up: pure decisions.

Hubs come first, as they introduce. Then neighbours on the same network, as their bytes are the cheapest, but
never only those: a few slots are kept for devices elsewhere, so that a site does not become an island when
the hubs are gone. Only links that we dialled count against our own slots: whoever dials us cannot choose our
neighbours for us (an eclipse attack).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from driftseed.core import limits
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.core.wire import DirectoryEntry

PathKind: TypeAlias = Literal["lan", "direct", "relayed", "unknown"]
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Random: TypeAlias = Callable[[], float]
"""Gives a number from 0 up to 1, as ``random.Random(seed).random`` does."""

ELSEWHERE_MIN: Final = 2
"""Neighbours of the active ones that are not on our own network, where there are any."""
_FRAME_MARGIN_BYTES: Final = 1024
_ENTRY_BYTES: Final = 448
"""Most bytes of a directory entry without its addresses: keys, a device id, a relay's URL, a role, an age."""
_LAN_PREFIX: Final = {4: 24, 6: 64}


@dataclass(frozen=True, slots=True)
class Tie:
    """A living link, as far as these decisions need to know it."""

    device: DeviceId
    role: str
    outgoing: bool
    """We dialled it."""
    since: float
    """When it came up, seconds."""
    path: PathKind = "unknown"
    busy: bool = False
    """Content is being carried beside it."""
    announced: bool = False
    """It has announced itself on our own network: it has a place of its own beside the neighbours."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A device that could be dialled."""

    address: NodeAddress
    role: str
    evidence_at: float
    """When somebody last had a link to it, seconds on our clock."""
    met: bool = False
    """We have had a link to it ourselves: its role is proved."""
    failures: int = 0
    """Dials in a row that failed."""
    retry_at: float = float("-inf")

    @property
    def device(self) -> DeviceId:
        """Its key."""
        return DeviceId(self.address.device)


class DirectoryBook:
    """Devices that a node could dial, at most ``kept`` of them.

    Args:
        own: ourselves, who is never in it.
        kept: entries. Devices that were never met and do not answer go first, the oldest evidence before
            newer; hubs that the signed metadata names never go.
    """

    def __init__(self, own: DeviceId, *, kept: int = limits.DIRECTORY_KEPT_MAX) -> None:
        self._own = own
        self._kept = kept
        self._contacts: dict[DeviceId, Contact] = {}
        self._signed_hubs: frozenset[DeviceId] = frozenset()
        self._own_networks: frozenset[_Network] = frozenset()
        self._dialling: set[DeviceId] = set()
        self._announced: OrderedDict[DeviceId, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contacts)

    def contact(self, device: DeviceId) -> Contact | None:
        """What is known of a device."""
        return self._contacts.get(device)

    def set_own_addresses(self, addrs: Iterable[str]) -> None:
        """Tell it where we are, so that it knows who is near."""
        self._own_networks = _networks(addrs)

    def set_hubs(self, hubs: Iterable[NodeAddress], now: float) -> None:
        """Replace the hubs that the signed metadata names; an earlier one becomes a contact like any."""
        kept = [hub for hub in hubs if hub.device != self._own]
        self._signed_hubs = frozenset(DeviceId(hub.device) for hub in kept)
        for hub in kept:
            self._merge(Contact(address=hub, role="hub", evidence_at=now))
        self._shrink()

    def learn(self, entries: Iterable[DirectoryEntry], now: float) -> None:
        """Merge what a peer says of others: the newest evidence wins, and none is newer than now.

        Roles are only claims until we have met the device; a failed dial is not forgiven by hearsay.
        """
        for entry in entries:
            if entry.address.device != self._own:
                evidence = now - entry.age_ms / 1000
                self._merge(Contact(address=entry.address, role=entry.role, evidence_at=evidence))
        # Once for all entries, so that a peer that sends full frames costs one sort for each.
        self._shrink()

    def announced(self, address: NodeAddress, now: float) -> None:
        """Note that a device says it is on our own network. Nothing of it is proved before it was dialled.

        A device at a new address is dialled at once even if dials have failed before: it has just started, or come.
        """
        device = DeviceId(address.device)
        if device == self._own:
            return
        before = self._contacts.get(device)
        self._announced[device] = None
        self._announced.move_to_end(device)
        while len(self._announced) > limits.LAN_CONTACTS_MAX:
            self._announced.popitem(last=False)
        self._merge(Contact(address=address, role="agent", evidence_at=now))
        if before is not None and not set(address.addrs) <= set(before.address.addrs):
            self._contacts[device] = replace(self._contacts[device], failures=0, retry_at=float("-inf"))
        self._shrink()

    def is_announced(self, device: DeviceId) -> bool:
        """Whether a device has announced itself on our own network."""
        return device in self._announced

    def left_network(self) -> None:
        """Another network: whoever was on the old one with us may not be on this one."""
        self._announced.clear()

    def met(self, address: NodeAddress, role: str, now: float) -> None:
        """Note that we have a link to a device, which has proved its role; call it again as it says more."""
        if address.device == self._own:
            return
        before = self._contacts.get(DeviceId(address.device))
        contact = Contact(address=address, role=role, evidence_at=now, met=True)
        if before is not None:
            contact = replace(contact, address=_joined(address, before.address))
        self._contacts[contact.device] = contact
        self._shrink()

    def dialling(self, device: DeviceId) -> None:
        """Note that a dial has begun: it is not chosen again until ``dialled``."""
        self._dialling.add(device)

    def dialled(self, device: DeviceId) -> None:
        """Note that a dial has ended, one way or the other."""
        self._dialling.discard(device)

    def failed(self, device: DeviceId, now: float, rng: Random) -> None:
        """Note that a dial failed: the wait doubles, within bounds, and is never the same for all."""
        contact = self._contacts.get(device)
        if contact is None:
            return
        failures = contact.failures + 1
        longest = limits.HUB_RETRY_MAX_S if device in self._signed_hubs else limits.DIAL_RETRY_MAX_S
        wait = min(limits.DIAL_RETRY_BASE_S * 2.0 ** min(failures - 1, 32), longest)
        self._contacts[device] = replace(contact, failures=failures, retry_at=now + wait * (0.5 + rng() / 2))

    def forgive(self) -> None:
        """Dial everyone again at once: our own network has changed, so that old failures say nothing."""
        for device, contact in self._contacts.items():
            self._contacts[device] = replace(contact, failures=0, retry_at=float("-inf"))

    def nearby(self, contact: Contact) -> bool:
        """Whether it has an address on a network of ours, or says so on it."""
        return contact.device in self._announced or not self._own_networks.isdisjoint(
            _networks(contact.address.addrs)
        )

    def entries(
        self, now: float, *, exclude: Collection[DeviceId] = (), limit: int = limits.DIRECTORY_ENTRIES_MAX
    ) -> list[DirectoryEntry]:
        """What we tell others: only devices that we have met, the newest first."""
        told = [each for each in self._contacts.values() if each.met and each.device not in exclude]
        told.sort(key=lambda each: (-each.evidence_at, each.device))
        found: list[DirectoryEntry] = []
        budget = limits.FRAME_BYTES_MAX - _FRAME_MARGIN_BYTES
        for each in told[:limit]:
            # Full entries of the longest addresses would not all fit into a frame.
            budget -= _ENTRY_BYTES + sum(len(addr) + 2 for addr in each.address.addrs)
            if budget < 0:
                break
            age_ms = max(0, int((now - each.evidence_at) * 1000))
            found.append(DirectoryEntry(address=each.address, role=each.role, age_ms=age_ms))
        return found

    def choose(
        self,
        ties: Collection[Tie],
        now: float,
        rng: Random,
        *,
        own_role: str = "agent",
        hubs_max: int = limits.HUBS_ACTIVE_MAX,
        neighbours_max: int = limits.NEIGHBOURS_ACTIVE_MAX,
        lan_max: int = limits.LAN_NEIGHBOURS_MAX,
    ) -> tuple[NodeAddress, ...]:
        """Whom to dial now.

        Args:
            ties: living links.
            now: seconds.
            rng: picks among equals, so that the load of a fleet spreads.
            own_role: an agent looks for hubs and neighbours, a hub for other hubs, a publisher for nobody.
            hubs_max: hubs to stay connected to.
            neighbours_max: other devices to stay connected to.
            lan_max: devices to stay connected to besides that announce themselves on our own network.

        Returns:
            Devices that are neither linked nor being dialled nor waiting after a failure.
        """
        if own_role not in {"agent", "hub"}:
            return ()
        linked = {tie.device for tie in ties}
        open_now = [
            each
            for each in self._contacts.values()
            if each.device not in linked and each.device not in self._dialling and each.retry_at <= now
        ]
        open_now.sort(key=lambda each: each.device)
        order = sorted(open_now, key=lambda each: (each.failures, rng()))
        pending = [self._contacts[each] for each in self._dialling - linked if each in self._contacts]

        hubs_wanted = hubs_max - sum(tie.role == "hub" for tie in ties)
        hubs_wanted -= sum(self._is_hub(each) for each in pending)
        hubs = sorted((each for each in order if self._is_hub(each)), key=self._hub_rank)
        chosen = hubs[: max(hubs_wanted, 0)]
        if own_role == "agent":
            others = [each for each in order if not self._is_hub(each) and each.role == "agent"]
            others, announced = self._part(others)
            waiting, announced_waiting = self._part([each for each in pending if not self._is_hub(each)])
            free = lan_max - sum(tie.announced and tie.outgoing for tie in ties) - len(announced_waiting)
            chosen += announced[: max(free, 0)]
            held = [tie.path == "lan" for tie in ties if _counts(tie)]
            held += [self.nearby(each) for each in waiting]
            chosen += self._choose_neighbours(others, held, neighbours_max)
        return tuple(each.address for each in chosen)

    def next_look(self, now: float) -> float | None:
        """When a failed device may be dialled again, seconds; None when nobody waits."""
        return min((each.retry_at for each in self._contacts.values() if each.retry_at > now), default=None)

    def _choose_neighbours(
        self, candidates: Sequence[Contact], held: Sequence[bool], neighbours_max: int
    ) -> list[Contact]:
        """Fill the free slots: near ones first, but leave ``ELSEWHERE_MIN`` for others if there are any."""
        free = neighbours_max - len(held)
        if free <= 0:
            return []
        near = [each for each in candidates if self.nearby(each)]
        far = [each for each in candidates if not self.nearby(each)]
        kept_for_far = min(max(ELSEWHERE_MIN - held.count(False), 0), len(far), free)
        chosen_near = near[: free - kept_for_far]
        return chosen_near + far[: free - len(chosen_near)]

    def _part(self, contacts: Iterable[Contact]) -> tuple[list[Contact], list[Contact]]:
        """Those that have not announced themselves on our own network, and those that have."""
        parted: tuple[list[Contact], list[Contact]] = ([], [])
        for each in contacts:
            parted[each.device in self._announced].append(each)
        return parted

    def _is_hub(self, contact: Contact) -> bool:
        return contact.role == "hub" or contact.device in self._signed_hubs

    def _hub_rank(self, contact: Contact) -> tuple[bool, bool]:
        """Hubs that are signed, or at least met, before ones that somebody only claims."""
        return (contact.device not in self._signed_hubs, not contact.met)

    def _merge(self, heard: Contact) -> None:
        before = self._contacts.get(heard.device)
        if before is None:
            self._contacts[heard.device] = heard
            return
        newer, older = (heard, before) if heard.evidence_at > before.evidence_at else (before, heard)
        self._contacts[heard.device] = replace(
            before,
            address=_joined(newer.address, older.address),
            role=before.role if before.met else newer.role,
            evidence_at=newer.evidence_at,
        )

    def _shrink(self) -> None:
        excess = len(self._contacts) - self._kept
        if excess <= 0:
            return
        losable = [each for each in self._contacts.values() if each.device not in self._signed_hubs]
        losable.sort(key=lambda each: (each.met, -each.failures, each.evidence_at, each.device))
        for worst in losable[:excess]:
            del self._contacts[worst.device]


def choose_prunes(
    ties: Collection[Tie],
    *,
    hubs_max: int = limits.HUBS_ACTIVE_MAX,
    neighbours_max: int = limits.NEIGHBOURS_ACTIVE_MAX,
    incoming_max: int = limits.LINKS_INCOMING_MAX,
    lan_max: int = limits.LAN_NEIGHBOURS_MAX,
) -> tuple[DeviceId, ...]:
    """Links to give up because there are more than there may be.

    Of each kind (hubs and agents that we dialled, those that dialled us) the busy ones stay first, then those
    with the shorter path, then the older: what has lasted will last.
    """
    kinds = (
        ([tie for tie in ties if tie.outgoing and tie.role == "hub"], hubs_max),
        ([tie for tie in ties if tie.outgoing and tie.role != "hub" and not tie.announced], neighbours_max),
        ([tie for tie in ties if tie.outgoing and tie.role != "hub" and tie.announced], lan_max),
        ([tie for tie in ties if not tie.outgoing], incoming_max),
    )
    return tuple(
        tie.device for kind, most in kinds for tie in sorted(kind, key=_worth_keeping)[max(most, 0) :]
    )


def share_network(ours: Iterable[str], theirs: Iterable[str]) -> bool:
    """Whether any two socket addresses are in one IPv4 /24 or one IPv6 /64.

    Args:
        ours: ``IP:PORT`` or ``[IPv6]:PORT``; what is neither is passed over.
        theirs: likewise, from a peer.
    """
    return not _networks(ours).isdisjoint(_networks(theirs))


def _networks(addrs: Iterable[str]) -> frozenset[_Network]:
    found: set[_Network] = set()
    for text in addrs:
        host = text.rpartition(":")[0].removeprefix("[").removesuffix("]").partition("%")[0]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        found.add(ipaddress.ip_network(f"{address}/{_LAN_PREFIX[address.version]}", strict=False))
    return frozenset(found)


def _joined(newer: NodeAddress, older: NodeAddress) -> NodeAddress:
    """The newer addresses first, then older ones: a false newer entry cannot make a device unreachable."""
    addrs = list(dict.fromkeys([*newer.addrs, *older.addrs]))[: limits.ADDRESSES_PER_DEVICE_MAX]
    return NodeAddress(device=newer.device, addrs=addrs, relay=newer.relay or older.relay)


def _counts(tie: Tie) -> bool:
    """Whether it takes one of the places for neighbours."""
    return tie.outgoing and tie.role == "agent" and not tie.announced


def _worth_keeping(tie: Tie) -> tuple[bool, int, float, str]:
    rank = {"lan": 0, "direct": 1, "unknown": 2, "relayed": 3}[tie.path]
    return (not tie.busy, rank, tie.since, tie.device)
