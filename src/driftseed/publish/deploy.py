"""Chooses what a deployment is of, and says what it would do before it is signed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from driftseed.core.errors import Misuse, NotFound
from driftseed.core.ids import SafeName, parse_safe_name
from driftseed.core.selectors import parse_selector
from driftseed.core.verified import VerifiedRelease
from driftseed.core.versions import version_key

EVERYTHING = "all"
"""What a person writes for the empty selector."""


@dataclass(frozen=True, slots=True)
class ReleaseReference:
    """A release as a person names it: ``NAME``, ``NAME@VERSION`` or ``NAME/VERSION``."""

    name: SafeName
    version: SafeName | None
    """None: the newest."""


def parse_reference(text: str, version: str | None) -> ReleaseReference:
    """Read a release's name.

    Args:
        text: ``NAME``, ``NAME@VERSION`` or ``NAME/VERSION``; none of a name's characters is @ or /.
        version: what ``--version`` said, if anything.

    Raises:
        Misuse: it is no name, or two versions are given.
    """
    name, at, inside = text.partition("@") if "@" in text else text.partition("/")
    if at and version is not None and inside != version:
        raise Misuse(f"two versions: {inside!r} and {version!r}", hint="give one of them")
    chosen = inside if at else version
    return ReleaseReference(
        parse_safe_name(name, "release name"),
        None if chosen is None else parse_safe_name(chosen, "version"),
    )


def choose_release(releases: Iterable[VerifiedRelease], wanted: ReleaseReference) -> VerifiedRelease:
    """The release that is meant; of several versions the newest.

    Raises:
        NotFound: there is no such release.
        Misuse: no version is given and two are equally new.
    """
    everything = list(releases)
    named = [release for release in everything if release.manifest.name == wanted.name]
    if not named:
        names = sorted({release.manifest.name for release in everything})
        raise NotFound(
            f"there is no release {wanted.name!r}",
            hint=f"there are: {', '.join(names)}" if names else "make one: driftseed release create",
        )
    if wanted.version is None:
        newest = max(version_key(release.manifest.version) for release in named)
        found = [release for release in named if version_key(release.manifest.version) == newest]
        if len(found) > 1:
            versions = " and ".join(release.manifest.version for release in found)
            raise Misuse(f"{versions} are equally new", hint="say which: --version VERSION")
        return found[0]
    for release in named:
        if release.manifest.version == wanted.version:
            return release
    versions = ", ".join(
        sorted((release.manifest.version for release in named), key=version_key, reverse=True)
    )
    raise NotFound(f"there is no version {wanted.version!r} of {wanted.name}", hint=f"there are: {versions}")


def parse_audience(text: str, keys: Iterable[str] | None) -> str:
    """Check whom a deployment is for.

    Args:
        text: a selector; ``all`` and nothing mean every device.
        keys: keys that it may use; None allows any.

    Raises:
        SelectorError: it does not parse; UnknownSelectorKey: it names a key that no device has.
    """
    selector = "" if text.strip() == EVERYTHING else text.strip()
    parse_selector(selector, known_keys=None if keys is None else frozenset(keys))
    return selector
