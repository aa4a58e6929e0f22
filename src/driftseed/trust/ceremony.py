"""Who signs what in a fleet, and changing that: keys made, replaced, withdrawn, paths handed to teams.

What ``root`` names (itself, targets, snapshot, timestamp) changes by a new root, which the thresholds of the old
and the new root keys must sign. When those keys are not all here, the new root waits in ``pending/root.json`` and
goes from person to person (``trust/proposal.py``). Everything else changes by a new ``targets``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from driftseed.core.errors import Conflict, Misuse, NotFound
from driftseed.core.model import ENROLMENT_TARGET, EnrolmentKeys
from driftseed.trust.chain import DELEGATED, FLEET, RELEASES, metadata_name, parse
from driftseed.trust.change import Change
from driftseed.trust.founding import ENROLMENT, ROOT_KEYS_MAX
from driftseed.trust.keyring import FILE, NamedKey, name_key
from driftseed.trust.keys import create_key
from driftseed.trust.layout import KEYS
from driftseed.trust.proposal import PROPOSAL, Proposal
from driftseed.trust.repository import FleetRepository
from driftseed.trust.signing import ROOT_LIFETIME, expiry
from driftseed.trust.tufapi import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

TOP_LEVEL: Final = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
_TEAM: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TEAM_PATH: Final = re.compile(r"releases/[A-Za-z0-9*?._+~-]+/[A-Za-z0-9*?._+~-]+/\*")


class FleetKeys(FleetRepository):
    """A fleet directory, with what changes its keys and roles. Use ``open``."""

    # --- changing keys --------------------------------------------------------------------------

    def new_key(self, role: str, passphrase: bytes | None) -> NamedKey:
        """Make a key file for a role, under the next free name; nothing names the key yet.

        Raises:
            DiskFull: nothing was written.
        """
        base = "root-" if role == Root.type else f"{role}-"
        number = 1
        while (path := self._directory.key(f"{base}{number}")).exists():
            number += 1
        create_key(path, passphrase)
        return name_key(str(path), lambda _: passphrase or b"")

    def rotate(
        self,
        role: str,
        keys: Sequence[NamedKey],
        *,
        threshold: int | None = None,
        brought: Iterable[NamedKey] = (),
    ) -> Proposal | None:
        """Replace all keys of a role.

        Args:
            role: ``root``, ``targets``, ``snapshot``, ``timestamp``, a role that targets delegates to, or
                ``enrolment``.
            keys: the new ones.
            threshold: how many must sign from now on; as before if not given.
            brought: further private keys that may sign this change.

        Returns:
            The new root when it still wants signatures; None when the change is in force.

        Raises:
            Misuse: no such role, or these keys cannot be its keys.
            Conflict: another new root waits for signatures.
            NotFound: keys that must sign now are not here.
        """
        self._known(role)
        if not keys:
            raise Misuse(f"no new keys for the role {role}")
        if role == ENROLMENT:
            self._set_enrolment([each.public_hex for each in keys], keys, brought)
            return None
        before = self._delegator(role).get_delegated_role(role)
        wanted = Role(
            [each.public.keyid for each in keys], _bounded(threshold or before.threshold, len(keys))
        )
        return self._replace(role, wanted, keys, brought)

    def add(self, role: str, key: NamedKey, *, brought: Iterable[NamedKey] = ()) -> Proposal | None:
        """Let one more key sign for a role; the threshold stays. Returns and raises as ``rotate``."""
        self._known(role)
        if role == ENROLMENT:
            self._set_enrolment([*self.enrolment_keys(), key.public_hex], [key], brought)
            return None
        before = self._delegator(role).get_delegated_role(role)
        return self._replace(role, Role([*before.keyids, key.public.keyid], before.threshold), [key], brought)

    def revoke(
        self, role: str, keyid: str, *, replacement: NamedKey | None = None, brought: Iterable[NamedKey] = ()
    ) -> Proposal | None:
        """Withdraw a key from a role.

        Args:
            role: as for ``rotate``.
            keyid: its id, or the beginning of it.
            replacement: takes its place.
            brought: further private keys that may sign this change.

        Returns and raises as ``rotate``; Misuse also when too few keys would be left to sign.
        """
        self._known(role)
        present = (
            self.enrolment_keys()
            if role == ENROLMENT
            else list(self._delegator(role).get_delegated_role(role).keyids)
        )
        matching = [each for each in present if each.startswith(keyid)]
        if len(matching) != 1:
            raise NotFound(
                f"{len(matching)} keys of the role {role} begin with {keyid}",
                hint="driftseed key list DIR shows their ids",
            )
        left = [each for each in present if each != matching[0]]
        new = [] if replacement is None else [replacement]
        if role == ENROLMENT:
            kept = [*left, *(each.public_hex for each in new)]
            if not kept:
                raise _too_few(role, 0, 1)
            self._set_enrolment(kept, new, brought)
            return None
        threshold = self._delegator(role).get_delegated_role(role).threshold
        left += [each.public.keyid for each in new]
        if len(left) < threshold:
            raise _too_few(role, len(left), threshold)
        return self._replace(role, Role(left, threshold), new, brought)

    def delegate(
        self,
        team: str,
        paths: Sequence[str],
        keys: Sequence[NamedKey],
        *,
        threshold: int = 1,
        brought: Iterable[NamedKey] = (),
    ) -> None:
        """Give releases of some names to a team alone: nobody else signs them from now on.

        Args:
            team: the name of the new role.
            paths: patterns such as ``releases/camera/*/*``.
            keys: the team's.
            threshold: how many of them must sign.
            brought: further private keys that may sign this change.

        Raises:
            Misuse: the name or a path cannot be a team's.
            Conflict: there is such a role, or another role has signed releases under these paths.
            NotFound: the targets key is not here, or the team's are not (they sign their first, empty, list).
        """
        check_team(team, paths)
        if team in self._chain.delegated:
            raise Conflict(
                f"there is a role {team}", hint=f"give it other keys: driftseed key rotate DIR {team}"
            )
        role = DelegatedRole(
            team,
            [each.public.keyid for each in keys],
            _bounded(threshold, len(keys)),
            terminating=True,
            paths=list(paths),
        )
        taken = [
            path
            for other in self._chain.release_roles
            for path in self._chain.paths(other)
            if role.is_delegated_path(path) and self._chain.owner(path) == other
        ]
        if taken:
            raise Conflict(
                f"{taken[0]} is signed by another role already, and would stop being valid",
                hint="devices that are to install it would refuse it: choose paths without releases",
            )
        with self._changing(keys=(*keys, *brought)) as change:
            delegations = self._delegations(change.role(Targets.type))
            for each in keys:
                delegations.keys[each.public.keyid] = each.public
            # First: the first pattern that matches decides, and teams' are more special than releases/*/*/*.
            delegations.roles = {team: role, **(delegations.roles or {})}
            change.new_role(team)
            self._record_keys(keys)
            self._commit(change)

    def undelegate(self, team: str, *, brought: Iterable[NamedKey] = ()) -> None:
        """Take a team's paths back. What it has signed is not valid any more.

        Raises:
            Misuse: there is no such team.
            Conflict: a deployment in force names a release of it.
        """
        if team in DELEGATED or team not in self._chain.delegated:
            raise Misuse(f"there is no team {team}")
        names = {(one.release, one.version) for one in self.deployments()}
        if any(self.release_role(*name) == team for name in names):
            raise Conflict(
                f"deployments in force name releases of {team}", hint="deploy other versions first"
            )
        with self._changing(keys=brought) as change:
            delegations = self._delegations(change.role(Targets.type))
            delegations.roles = {
                name: role for name, role in (delegations.roles or {}).items() if name != team
            }
            self._commit(change)

    # --- the root -------------------------------------------------------------------------------

    def renew_root(self, *, brought: Iterable[NamedKey] = ()) -> Proposal | None:
        """Sign the root anew for another lifetime. Returns and raises as ``rotate``."""
        root = self._next_root()
        return self._propose(root, (), brought)

    def proposal(self) -> Proposal:
        """The next root that waits for signatures. Raises NotFound when none does."""
        data = self._directory.read(PROPOSAL)
        if data is None:
            raise NotFound(
                "no new root waits for signatures", hint="key rotate, key revoke and fleet renew make one"
            )
        return Proposal.decode(data)

    def sign_proposal(self, keys: Iterable[NamedKey]) -> Proposal | None:
        """Sign the next root with these keys; put it in force if that completes it. Returns as ``rotate``."""
        with self._locked():
            proposal = self.proposal()
            ring = self.keyring(keys)
            for named in keys:
                signer = ring.signer(named.public)
                if signer is None:
                    raise Misuse(f"only the public half of key {named.public.keyid[:16]} was given")
                proposal.sign(signer)
            return self._settle(proposal, keys)

    def import_proposal(
        self, other: Proposal, *, brought: Iterable[NamedKey] = ()
    ) -> tuple[int, Proposal | None]:
        """Take over signatures made elsewhere; put the root in force if they complete it.

        Returns:
            New signatures, and the proposal if it still wants some.
        """
        with self._locked():
            proposal = self.proposal()
            new = proposal.merge(other)
            return new, self._settle(proposal, brought)

    def cancel_proposal(self) -> None:
        """Give the next root up. Raises NotFound when there is none."""
        with self._locked():
            self.proposal()
            (self._directory.path / PROPOSAL).unlink()

    # --- how ------------------------------------------------------------------------------------

    def _known(self, role: str) -> None:
        if role not in {*TOP_LEVEL, *self._chain.delegated, ENROLMENT}:
            roles = ", ".join((*TOP_LEVEL, *self._chain.delegated, ENROLMENT))
            raise Misuse(f"there is no role {role}", hint=f"roles: {roles}")

    def _delegator(self, role: str) -> Root | Targets:
        return self._chain.root if role in TOP_LEVEL else self._chain.targets

    def _record_keys(self, keys: Iterable[NamedKey], *, enrolment: bool = False) -> None:
        """Remember where private keys are; before anything names them, so that nothing is lost in a crash."""
        inside = f"{FILE}:{self._directory.path.absolute() / KEYS}/"
        recorded = dict(self._record.keys)
        for named in keys:
            if named.uri is not None:
                uri = named.uri.replace(inside, f"{FILE}:{KEYS}/", 1)
                recorded[named.public_hex if enrolment else named.public.keyid] = uri
        self._save(keys=recorded)

    def _set_enrolment(
        self, public: Sequence[str], keys: Sequence[NamedKey], brought: Iterable[NamedKey]
    ) -> None:
        if len(set(public)) != len(public):
            raise Misuse("a key is named twice")
        with self._changing(FLEET, keys=brought) as change:
            change.add_document(FLEET, ENROLMENT_TARGET, EnrolmentKeys(keys=list(public)))
            self._record_keys(keys, enrolment=True)
            self._commit(change)

    def _replace(
        self, role: str, wanted: Role, keys: Sequence[NamedKey], brought: Iterable[NamedKey]
    ) -> Proposal | None:
        if len(set(wanted.keyids)) > ROOT_KEYS_MAX:
            raise Misuse(f"{len(wanted.keyids)} keys for the role {role}", hint=f"at most {ROOT_KEYS_MAX}")
        if role in TOP_LEVEL:
            root = self._next_root()
            known = {**root.keys, **{each.public.keyid: each.public for each in keys}}
            _set_keys(root, role, wanted, known)
            return self._propose(root, keys, brought)
        with self._changing(keys=(*keys, *brought)) as change:
            delegations = self._delegations(change.role(Targets.type))
            for each in keys:
                delegations.keys[each.public.keyid] = each.public
            roles = delegations.roles or {}
            roles[role].keyids, roles[role].threshold = list(wanted.keyids), wanted.threshold
            used = {keyid for each in roles.values() for keyid in each.keyids}
            delegations.keys = {keyid: key for keyid, key in delegations.keys.items() if keyid in used}
            self._record_keys(keys)
            self._commit(change)
        return None

    @staticmethod
    def _delegations(targets: Targets) -> Delegations:
        if targets.delegations is None:
            raise Misuse("these targets delegate to nobody", hint="restore metadata/ from your backup")
        return targets.delegations

    def _next_root(self) -> Root:
        if self._directory.read(PROPOSAL) is not None:
            raise Conflict(
                "another new root waits for signatures",
                hint="finish it (driftseed root status DIR), or give it up: driftseed root cancel DIR",
            )
        name = metadata_name(Root.type, self._chain.root.version)
        root = parse(self._chain.files[name], Root, name).signed
        root.version += 1
        root.expires = expiry(self._clock, ROOT_LIFETIME)
        return root

    def _propose(self, root: Root, keys: Sequence[NamedKey], brought: Iterable[NamedKey]) -> Proposal | None:
        with self._locked():
            previous = self._chain.files[metadata_name(Root.type, self._chain.root.version)]
            proposal = Proposal(self.fleet_id, self.name, previous, Metadata(root))
            extra = (*keys, *brought)
            ring = self.keyring(extra)
            for source in (proposal.previous, root):
                for keyid in source.roles[Root.type].keyids:
                    if (signer := ring.signer(source.get_key(keyid))) is not None:
                        proposal.sign(signer)
            self._record_keys(keys)
            return self._settle(proposal, extra)

    def _settle(self, proposal: Proposal, brought: Iterable[NamedKey]) -> Proposal | None:
        """Keep the proposal, then put it in force if it is complete. The caller holds the lock."""
        present = self._chain.files[metadata_name(Root.type, self._chain.root.version)]
        if proposal.fleet != self.fleet_id or proposal.previous_bytes != present:
            raise Misuse(
                "the new root that waits does not follow this fleet's root",
                hint="give it up: driftseed root cancel DIR",
            )
        self._directory.write(PROPOSAL, proposal.encode())
        if not proposal.complete:
            return proposal
        change = Change(self._chain, self.keyring(brought), self._clock)
        change.set_root(proposal.data)
        self._commit(change)
        (self._directory.path / PROPOSAL).unlink()
        return None


def _set_keys(root: Root, role: str, wanted: Role, known: dict[str, Key]) -> None:
    root.roles[role] = wanted
    used = {keyid for each in root.roles.values() for keyid in each.keyids}
    root.keys = {keyid: key for keyid, key in known.items() if keyid in used}


def _bounded(threshold: int, keys: int) -> int:
    if not 1 <= threshold <= keys:
        raise Misuse(
            f"{threshold} of {keys} keys must sign", hint="name as many keys as must sign, or say --threshold"
        )
    return threshold


def _too_few(role: str, left: int, threshold: int) -> Misuse:
    return Misuse(
        f"the role {role} would have {left} keys, and {threshold} must sign",
        hint="put another in its place: --replace-with KEY, or replace all: driftseed key rotate",
    )


def check_team(team: str, paths: Sequence[str]) -> None:
    """Raise Misuse unless these can be a team's name and paths."""
    if not _TEAM.fullmatch(team) or team in {*TOP_LEVEL, *DELEGATED, ENROLMENT}:
        raise Misuse(f"{team!r} cannot be a team's name", hint="lowercase letters, digits and dashes")
    if not paths:
        raise Misuse("a team without paths signs nothing", hint="--paths 'releases/camera/*/*'")
    for path in paths:
        if not _TEAM_PATH.fullmatch(path) or path == DELEGATED[RELEASES]:
            raise Misuse(
                f"{path!r} cannot be a team's path",
                hint="releases/NAME/VERSION/* with patterns for name and version, such as releases/camera/*/*",
            )
