"""Kinds of NATs, and the rules that make a namespace be one.

Each router has an interface ``wan`` to the internet and one ``lan`` to its devices. The rules are those that
an RFC 5780 prober has found to behave as named (``lab.prober`` asks again, every time). Bare ``masquerade``
is not a faithful NAT: a peer's early packet that the router itself takes in leaves a connection behind, and our
own packet to that peer then gets another port. Real routers drop it, hence ``_INPUT_DROP``.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from enum import StrEnum
from typing import Final, assert_never

from driftseed.core.errors import Misuse
from driftseed.core.natprobe import Behaviour, Filtering, Mapping


class NatKind(StrEnum):
    """What a device has between itself and the internet."""

    PUBLIC = "public"
    """Nothing: a public address."""
    FULL_CONE = "full-cone"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC_BY_ADDRESS = "symmetric-by-address"
    SYMMETRIC = "symmetric"
    DOUBLE = "double"
    """A port-restricted router behind a carrier's NAT that sends nothing back in."""
    DOUBLE_HAIRPIN = "double-hairpin"
    """The same, with a carrier's NAT by which its own customers reach each other."""
    NO_UDP = "no-udp"
    """A company's firewall: TCP to ports 80 and 443, nothing else."""
    SHORT_LIVED = "short-lived"
    """A cheap router that forgets after 3 s of silence."""


SHORT_LIFETIME_S: Final = 3
"""Seconds after which a short-lived binding is gone."""

_EI, _AD, _APD = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
_OPEN, _BY_ADDRESS, _BY_BOTH = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)

EXPECTED: Final[MappingOf[NatKind, Behaviour]] = {
    NatKind.PUBLIC: Behaviour(_EI, _OPEN, translated=False),
    NatKind.FULL_CONE: Behaviour(_EI, _OPEN),
    NatKind.ADDRESS_RESTRICTED: Behaviour(_EI, _BY_ADDRESS),
    NatKind.PORT_RESTRICTED: Behaviour(_EI, _BY_BOTH),
    NatKind.SYMMETRIC_BY_ADDRESS: Behaviour(_AD, _BY_BOTH),
    NatKind.SYMMETRIC: Behaviour(_APD, _BY_BOTH),
    NatKind.DOUBLE: Behaviour(_EI, _BY_BOTH, hairpin=False),
    NatKind.DOUBLE_HAIRPIN: Behaviour(_EI, _BY_BOTH, hairpin=True),
    NatKind.NO_UDP: Behaviour(Mapping.BLOCKED, Filtering.BLOCKED),
    NatKind.SHORT_LIVED: Behaviour(_EI, _BY_BOTH, open_less_than_s=SHORT_LIFETIME_S + 2.0),
}
"""What the prober has to find."""

CARRIERS: Final[MappingOf[NatKind, bool]] = {NatKind.DOUBLE: False, NatKind.DOUBLE_HAIRPIN: True}
"""Kinds that have a carrier's NAT outside the home's, and whether that hairpins."""

_INPUT_DROP: Final = """
  chain input {
    type filter hook input priority filter;
    iifname "wan" meta l4proto udp ct state new drop
  }
"""

_FORWARD_ESTABLISHED: Final = """
  chain forward {
    type filter hook forward priority filter;
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }
"""

_SEEN_BY_ADDRESS: Final = """
  set seen {
    type ipv4_addr . inet_service . ipv4_addr
    flags dynamic,timeout
    timeout 120s
    size 65536
  }
  chain forward {
    type filter hook forward priority filter;
    iifname "lan" meta l4proto udp update @seen { ip saddr . udp sport . ip daddr timeout 120s }
    iifname "wan" ct state established,related accept
    iifname "wan" meta l4proto udp ip daddr . udp dport . ip saddr @seen accept
    iifname "wan" drop
  }
"""

_ONLY_WEB: Final = """
  chain forward {
    type filter hook forward priority filter;
    ct state established,related accept
    iifname "wan" drop
    tcp dport { 80, 443 } accept
    drop
  }
"""


def _map(wan: str, *, hairpin_for: str | None = None) -> str:
    """Endpoint-independent mapping that keeps ports; no two inner hosts may share a source port."""
    to_us = f"ip daddr {wan}" if hairpin_for else 'iifname "wan"'
    turned = f'oifname "lan" ct status dnat ip saddr {hairpin_for} snat to {wan}' if hairpin_for else ""
    return f"""
  map fc {{
    type inet_service : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout 300s
    size 65536
  }}
  chain pre {{
    type nat hook prerouting priority dstnat;
    {to_us} meta l4proto udp dnat to udp dport map @fc
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" meta l4proto udp update @fc {{ udp sport timeout 300s : ip saddr . udp sport }}
    oifname "wan" snat to {wan}
    {turned}
  }}
"""


def _source_nat(*rules: str) -> str:
    lines = "\n    ".join(rules)
    return f"""
  chain post {{
    type nat hook postrouting priority srcnat;
    {lines}
  }}
"""


def rules(kind: NatKind, wan: str) -> str:
    """The ruleset (nft(8)) of a home's or company's router.

    Args:
        kind: what it shall be.
        wan: its outer address.
    """
    by_address = f"snat to {wan} : jhash ip saddr . udp sport . ip daddr mod 30000 seed 0x1 offset 20000"
    match kind:
        case NatKind.PUBLIC:
            body = ""
        case NatKind.FULL_CONE:
            body = _map(wan)
        case NatKind.ADDRESS_RESTRICTED:
            body = _map(wan) + _SEEN_BY_ADDRESS
        case NatKind.PORT_RESTRICTED | NatKind.DOUBLE | NatKind.DOUBLE_HAIRPIN:
            body = _map(wan) + _FORWARD_ESTABLISHED
        case NatKind.SYMMETRIC_BY_ADDRESS:
            body = (
                _source_nat(f'oifname "wan" meta l4proto udp {by_address}', f'oifname "wan" snat to {wan}')
                + _INPUT_DROP
            )
        case NatKind.SYMMETRIC:
            body = _source_nat('oifname "wan" masquerade random,fully-random') + _INPUT_DROP
        case NatKind.NO_UDP:
            body = _source_nat('oifname "wan" masquerade') + _ONLY_WEB
        case NatKind.SHORT_LIVED:
            body = _source_nat('oifname "wan" masquerade') + _INPUT_DROP
        case _:
            assert_never(kind)
    return f"table ip nat {{\n{body}\n}}\n"


def carrier_rules(wan: str, inside: str, *, hairpin: bool) -> str:
    """The ruleset of a carrier's NAT over the network ``inside``, such as 100.64.1.0/24."""
    return f"table ip nat {{\n{_map(wan, hairpin_for=inside if hairpin else None)}\n}}\n"


def sysctls(kind: NatKind) -> dict[str, int]:
    """Switches below ``/proc/sys/net`` that belong to a kind; conntrack must be loaded (``rules`` does)."""
    if kind is not NatKind.SHORT_LIVED:
        return {}
    return {
        "netfilter/nf_conntrack_udp_timeout": SHORT_LIFETIME_S,
        "netfilter/nf_conntrack_udp_timeout_stream": SHORT_LIFETIME_S,
    }


FIREWALL_V6: Final = """
table ip6 filter {
  chain forward {
    type filter hook forward priority filter;
    iifname "wan" ct state established,related accept
    meta l4proto ipv6-icmp accept
    iifname "wan" drop
  }
}
"""
"""IPv6 at home: no translation, and nothing comes in unasked (RFC 6092)."""


def parse_kinds(texts: Iterable[str]) -> tuple[NatKind, ...]:
    """Read the names of kinds.

    Raises:
        Misuse: one is not the name of any; the message says which there are.
    """
    found = []
    for text in texts:
        if text not in set(NatKind):
            raise Misuse(f"no kind of NAT is called {text[:40]!r}", hint=f"one of {', '.join(NatKind)}")
        found.append(NatKind(text))
    return tuple(found)
