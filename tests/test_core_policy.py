"""What a device does about its deployments, and every reason not to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import AmbiguousVariant, NoVariant, SelectorError
from driftseed.core.lifecycle import State
from driftseed.core.policy import (
    CIRCUMSTANCES,
    FAILED_STATES,
    TRANSIENT,
    Attempt,
    Decision,
    DeviceFacts,
    Go,
    History,
    Installed,
    Refuse,
    Satisfied,
    Wait,
    choose_variant,
    decide,
    retry_at,
)
from driftseed.core.verified import VerifiedDeployment
from support_core import NOW, artifact, deployment, device, fleet, release

FACTS = DeviceFacts(
    device=device(1),
    inventory={"arch": "arm64", "board": "rpi4", "cpus": "4", "site": "claimed"},
    labels={"site": "glasgow", "ring": "1"},
    modules=frozenset({"directory", "script"}),
    free_bytes=10 * limits.GIB,
)


def only(decisions: tuple[Decision, ...]) -> Decision:
    assert len(decisions) == 1
    return decisions[0]


def decided(
    one: VerifiedDeployment, facts: DeviceFacts = FACTS, history: History | None = None, now: float = NOW
) -> Decision:
    return only(decide(fleet(one), facts, history or History(), now))


def tried(one: VerifiedDeployment, state: str, reason: str, attempts: int = 1, ago: float = 0.0) -> History:
    return History(attempts={one.deployment.id: Attempt(state, attempts, reason, NOW - ago)})


# --- which artifact -----------------------------------------------------------------------------


def test_signed_labels_win_over_what_a_device_says_of_itself() -> None:
    assert FACTS.values["site"] == "glasgow"
    assert replace(FACTS, labels={"device.id": "forged"}).values["device.id"] == device(1)


def test_the_variant_that_fits_is_chosen() -> None:
    arm, amd = artifact("arm.bin", "arch=arm64"), artifact("amd.bin", "arch=amd64")
    assert choose_variant(release("app", "1", amd, arm), FACTS.values) == arm


def test_the_most_specific_variant_wins_in_any_order() -> None:
    general, middle = artifact("any.bin"), artifact("arm.bin", "arch=arm64")
    special = artifact("rpi.bin", "arch=arm64,board=rpi4")
    for order in ((general, middle, special), (special, middle, general)):
        assert choose_variant(release("app", "1", *order), FACTS.values) == special


def test_no_variant_says_what_was_asked_and_what_the_device_is() -> None:
    amd = release("app", "1", artifact("amd.bin", "arch=amd64,libc=musl"))
    with pytest.raises(NoVariant) as caught:
        choose_variant(amd, FACTS.values)
    assert caught.value.message == "app 1 has no artifact for this device (arch=arm64, no libc)"


def test_a_tie_names_both_variants() -> None:
    tie = release(
        "app", "1", artifact("a.bin", "arch=arm64"), artifact("b.bin", "board=rpi4"), artifact("c.bin")
    )
    with pytest.raises(AmbiguousVariant) as caught:
        choose_variant(tie, FACTS.values)
    assert "a.bin (arch=arm64) and b.bin (board=rpi4)" in caught.value.message
    assert "c.bin" not in caught.value.message


def test_repeating_a_requirement_makes_a_variant_no_more_specific() -> None:
    tie = release("app", "1", artifact("a.bin", "arch=arm64,arch==arm64"), artifact("b.bin", "board=rpi4"))
    with pytest.raises(AmbiguousVariant):
        choose_variant(tie, FACTS.values)


def test_a_variant_whose_selector_does_not_parse_is_not_passed_over() -> None:
    broken = release("app", "1", artifact("a.bin", "arch=arm64"), artifact("b.bin", "arch in arm64"))
    with pytest.raises(SelectorError):
        choose_variant(broken, FACTS.values)


# --- which deployment ---------------------------------------------------------------------------


def test_a_deployment_for_this_device_goes_ahead() -> None:
    app = release("app", "1.0", artifact("app.bin"))
    one = deployment(app, selector="site=glasgow")
    assert decided(one) == Go(one, app.manifest.artifacts[0])


def test_deployments_for_others_say_nothing_here() -> None:
    assert decide(fleet(deployment(release(), selector="site=oslo")), FACTS, History(), NOW) == ()
    assert decide(fleet(), FACTS, History(), NOW) == ()


def test_the_highest_sequence_that_matches_counts_per_release_name() -> None:
    old, new = deployment(release("app", "1"), 1), deployment(release("app", "2"), 2)
    elsewhere = deployment(release("app", "3"), 3, "site=oslo")
    other = deployment(release("os", "9"), 4)
    for order in ((old, new, elsewhere, other), (other, elsewhere, new, old)):
        decisions = decide(fleet(*order), FACTS, History(), NOW)
        assert [decision.deployment for decision in decisions] == [new, other]


def test_a_device_that_has_the_release_is_satisfied_even_with_expired_metadata() -> None:
    one = deployment(release())
    history = History(installed={"app": Installed("1.0", one.release.digest, one.deployment.id)})
    assert only(decide(fleet(one, expires=NOW - 1), FACTS, history, NOW)) == Satisfied(one)


def test_the_same_version_with_another_manifest_is_installed() -> None:
    one = deployment(release())
    history = History(installed={"app": Installed("1.0", "0" * 64, "d")})
    assert isinstance(decided(one, history=history), Go)


# --- refusals -----------------------------------------------------------------------------------


def refused(decision: Decision) -> tuple[str, str]:
    assert isinstance(decision, Refuse)
    return decision.reason, decision.detail


def test_a_malformed_deployment_selector_is_refused_and_stops_nothing_else() -> None:
    broken = deployment(release("app", "2"), 2, "site in glasgow")
    good = deployment(release("os", "1"), 3)
    first, second = decide(fleet(broken, good), FACTS, History(), NOW)
    reason, detail = refused(first)
    assert reason == "selector-invalid"
    assert "site in glasgow" in detail
    assert isinstance(second, Go)


def test_a_malformed_selector_holds_back_what_it_was_to_replace() -> None:
    old, broken = deployment(release("app", "1"), 1), deployment(release("app", "2"), 2, "(")
    assert refused(only(decide(fleet(old, broken), FACTS, History(), NOW)))[0] == "selector-invalid"
    newer = deployment(release("app", "3"), 3)
    assert isinstance(only(decide(fleet(old, broken, newer), FACTS, History(), NOW)), Go)


def test_a_malformed_artifact_selector_is_refused() -> None:
    one = deployment(release("app", "1", artifact("a.bin", "arch=='arm64'")))
    reason, detail = refused(decided(one))
    assert reason == "selector-invalid"
    assert detail.startswith("the selector of an artifact")


def test_no_variant_and_ambiguous_variant_are_refused() -> None:
    none = deployment(release("app", "1", artifact("a.bin", "arch=amd64")))
    assert refused(decided(none))[0] == "no-variant"
    two = deployment(release("app", "1", artifact("a.bin"), artifact("b.bin")))
    assert refused(decided(two))[0] == "ambiguous-variant"


def test_expired_metadata_is_refused_with_a_word_about_the_clock() -> None:
    one = deployment(release())
    reason, detail = refused(only(decide(fleet(one, expires=NOW - 90), FACTS, History(), NOW)))
    assert reason == "metadata-expired"
    assert "90 s ago" in detail
    assert "the clock is wrong" in detail
    assert isinstance(only(decide(fleet(one, expires=NOW), FACTS, History(), NOW)), Go)


def test_a_downgrade_needs_leave() -> None:
    history = History(installed={"app": Installed("1.10", "0" * 64, "d")})
    reason, detail = refused(decided(deployment(release("app", "1.9")), history=history))
    assert reason == "downgrade"
    assert "1.9 is older than the installed 1.10" in detail
    allowed = deployment(release("app", "1.9"), allow_downgrade=True)
    assert isinstance(decided(allowed, history=history), Go)


def test_a_missing_module_is_named_with_those_there_are() -> None:
    reason, detail = refused(decided(deployment(release(module="rauc"))))
    assert reason == "module-missing"
    assert "'rauc'" in detail
    assert "directory, script" in detail
    bare = replace(FACTS, modules=frozenset())
    assert refused(decided(deployment(release()), bare))[1].endswith("installed are: none")


# --- after failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(FAILED_STATES))
@pytest.mark.parametrize("reason", ["health-check-failed", "module-failed", "module-timeout", ""])
def test_what_trying_again_does_not_mend_is_tried_once(state: str, reason: str) -> None:
    one = deployment(release())
    token, detail = refused(decided(one, history=tried(one, state, reason, ago=1e6)))
    assert token == "attempts-exhausted"
    assert reason in detail


def test_a_rolled_back_deployment_does_not_block_a_newer_one() -> None:
    bad, fixed = deployment(release("app", "2"), 2), deployment(release("app", "3"), 3)
    history = tried(bad, "rolled-back", "health-check-failed")
    assert only(decide(fleet(bad, fixed), FACTS, history, NOW)).deployment == fixed


@pytest.mark.parametrize("reason", sorted(TRANSIENT))
def test_transient_failures_are_retried_with_growing_waits_and_then_not(reason: str) -> None:
    one = deployment(release())
    for attempts in range(1, limits.ATTEMPTS_MAX):
        decision = decided(one, history=tried(one, "failed", reason, attempts))
        wait = limits.RETRY_BASE_S * 2 ** (attempts - 1)
        assert isinstance(decision, Wait)
        assert (decision.reason, decision.until) == ("retry-later", NOW + wait)
        assert isinstance(decided(one, history=tried(one, "failed", reason, attempts, ago=wait)), Go)
    last = tried(one, "failed", reason, limits.ATTEMPTS_MAX, ago=1e6)
    assert refused(decided(one, history=last))[0] == "attempts-exhausted"


@pytest.mark.parametrize("reason", sorted(CIRCUMSTANCES))
@pytest.mark.parametrize("state", ["failed", "rolled-back"])
def test_a_full_disk_or_a_dead_network_never_exhausts_the_attempts(reason: str, state: str) -> None:
    one = deployment(release())
    history = tried(one, state, reason, attempts=1000)
    decision = decided(one, history=history)
    assert isinstance(decision, Wait)
    assert decision.until == NOW + limits.RETRY_MAX_S
    assert isinstance(decided(one, history=history, now=NOW + limits.RETRY_MAX_S - 100), Wait)
    assert isinstance(decided(one, history=tried(one, state, reason, 1000, limits.RETRY_MAX_S)), Go)


def test_a_device_that_could_not_roll_back_is_left_alone() -> None:
    one = deployment(release())
    assert (
        refused(decided(one, history=tried(one, "inconsistent", "disk-full", ago=1e9)))[0]
        == "attempts-exhausted"
    )


def test_a_clock_that_was_set_back_does_not_stop_retrying() -> None:
    one = deployment(release())
    assert isinstance(decided(one, history=tried(one, "failed", "disk-full", ago=-1e8)), Go)


def test_the_failed_states_are_the_lifecycles_ends_but_success() -> None:
    assert {State.FAILED, State.ROLLED_BACK, State.INCONSISTENT} == FAILED_STATES


@given(st.integers(min_value=-5, max_value=10**9))
def test_the_wait_between_attempts_is_bounded(attempts: int) -> None:
    wait = retry_at(Attempt("failed", attempts, "disk-full", NOW)) - NOW
    assert limits.RETRY_BASE_S <= wait <= limits.RETRY_MAX_S


# --- space --------------------------------------------------------------------------------------


def test_a_download_waits_until_it_and_the_margin_fit() -> None:
    one = deployment(release("app", "1", artifact(length=5000)))
    needed = 5000 + limits.DISK_MARGIN_BYTES
    decision = decided(one, replace(FACTS, free_bytes=needed - 1))
    assert isinstance(decision, Wait)
    assert (decision.reason, decision.until) == ("disk-full", None)
    assert str(needed) in decision.detail
    assert isinstance(decided(one, replace(FACTS, free_bytes=needed)), Go)


def test_what_is_here_or_under_way_needs_no_more_space() -> None:
    one = deployment(release("app", "1", artifact(length=5000)))
    full = replace(FACTS, free_bytes=0)
    assert isinstance(decided(one, replace(full, held=frozenset({artifact().sha256}))), Go)
    assert isinstance(decided(one, full, tried(one, "downloading", "")), Go)


selector_texts = st.sampled_from(
    ["", "arch=arm64", "arch=amd64", "site in glasgow", "ring", "!ring", "cpus>2"]
)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 9), selector_texts, selector_texts, st.booleans()),
        max_size=8,
    ),
    st.sampled_from(["", "failed", "rolled-back", "downloading", "what-is-this"]),
    st.integers(0, 10**6),
    st.floats(min_value=NOW - 1e6, max_value=NOW + 1e6),
)
def test_deciding_never_raises_and_decides_once_per_release(
    many: list[tuple[str, int, str, str, bool]], state: str, free: int, now: float
) -> None:
    deployments = [
        deployment(
            release(name, str(sequence), artifact("f.bin", variant)),
            sequence,
            selector,
            allow_downgrade=leave,
        )
        for name, sequence, selector, variant, leave in many
    ]
    history = History(
        installed={"a": Installed("5", "0" * 64, "d")},
        attempts={each.deployment.id: Attempt(state, 2, "disk-full", NOW) for each in deployments}
        if state
        else {},
    )
    decisions = decide(fleet(*deployments), replace(FACTS, free_bytes=free), history, now)
    names = [decision.deployment.deployment.release for decision in decisions]
    assert len(names) == len(set(names))
