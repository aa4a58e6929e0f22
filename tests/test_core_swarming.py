"""From whom content is fetched."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.ids import DeviceId
from driftseed.core.neighbours import PathKind
from driftseed.core.swarming import RELAYED_PEERS_MAX, Holder, choose_swarm_peers
from support_core import device


def holder(
    number: int,
    path: PathKind = "direct",
    *,
    whole: bool = True,
    hub: bool = False,
    connected: bool = False,
) -> Holder:
    return Holder(device(number), whole=whole, hub=hub, path=path, connected=connected)


def chosen(*holders: Holder, peers_max: int = limits.SWARM_PEERS_MAX, seed: int = 1) -> list[DeviceId]:
    return list(choose_swarm_peers(holders, random.Random(seed).random, peers_max=peers_max))


def test_the_lan_first_then_direct_then_unknown_then_hubs_and_no_relay() -> None:
    hub, lan, direct, unknown = holder(1, hub=True), holder(2, "lan"), holder(3), holder(4, "unknown")
    relayed = holder(5, "relayed")
    assert chosen(relayed, hub, unknown, direct, lan) == [device(number) for number in (2, 3, 4, 1)]


def test_relayed_holders_are_taken_when_nobody_else_has_it_all() -> None:
    partial = holder(1, whole=False)
    relayed = [holder(number, "relayed") for number in range(2, 9)]
    found = chosen(partial, *relayed)
    assert found[0] == device(1)
    assert len(found) == 1 + RELAYED_PEERS_MAX


def test_a_partial_relayed_holder_is_better_than_none_and_worse_than_any() -> None:
    lonely = holder(1, "relayed", whole=False)
    assert chosen(lonely) == [device(1)]
    assert chosen(lonely, holder(2, whole=False)) == [device(2)]


def test_a_crowd_on_the_lan_that_lacks_it_does_not_shut_out_the_only_source() -> None:
    crowd = [holder(number, "lan", whole=False) for number in range(1, 60)]
    found = chosen(*crowd, holder(99, hub=True))
    assert len(found) == limits.SWARM_PEERS_MAX
    assert found[-1] == device(99)


def test_connected_peers_stay_among_equals() -> None:
    crowd = [holder(number) for number in range(1, 60)]
    kept = [holder(number, connected=True) for number in range(100, 110)]
    found = chosen(*crowd, *kept)
    assert {each.device for each in kept} <= set(found)


def test_nobody_to_ask() -> None:
    assert chosen() == []
    assert chosen(holder(1), peers_max=0) == []
    assert chosen(holder(1, "relayed"), peers_max=0) == []


holders = st.builds(
    Holder,
    device=st.integers(1, 60).map(device),
    whole=st.booleans(),
    hub=st.booleans(),
    path=st.sampled_from(["lan", "direct", "relayed", "unknown"]),
    connected=st.booleans(),
)


@given(st.lists(holders, unique_by=lambda each: each.device, max_size=50), st.integers(0, 30), st.integers())
def test_bounds_and_a_source_whenever_there_is_one(many: list[Holder], peers_max: int, seed: int) -> None:
    found = chosen(*many, peers_max=peers_max, seed=seed)
    by_id = {each.device: each for each in many}
    assert len(found) == len(set(found)) <= peers_max
    if peers_max:
        assert any(by_id[each].whole for each in found) == any(each.whole for each in many)
        assert bool(found) == bool(many)
    if any(each.whole and each.path != "relayed" for each in many):
        assert all(by_id[each].path != "relayed" for each in found)
    assert found == chosen(*reversed(many), peers_max=peers_max, seed=seed)
