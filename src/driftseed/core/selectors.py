"""Label selectors: which devices something is for.

The syntax and the meaning are Kubernetes' (``k8s.io/apimachinery/pkg/labels``, "Label selectors" in its
documentation), so that operators need not learn another one::

    selector    = [ requirement *( "," requirement ) ]          all of them must hold; none: everything
    requirement = key | "!" key                                 the key is there, is not there
                | key ( "=" | "==" | "!=" ) [ value ]           no value: the empty one
                | key ( "in" | "notin" ) "(" [ value ] *( "," [ value ] ) ")"
                | key ( ">" | "<" ) integer

A device without the key fulfils ``!=`` and ``notin``, and nothing else but ``!key``. One thing is wider than
in Kubernetes: a value may have 64 characters, not 63, because a device id has 64.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from driftseed.core import limits
from driftseed.core.errors import SelectorError, UnknownSelectorKey

INVENTORY_KEYS: Final = frozenset(
    {
        "agent.version",
        "arch",
        "board",
        "compatible",
        "cpus",
        "device.id",
        "hostname",
        "libc",
        "memory_mib",
        "model",
        "os.id",
        "os.kernel",
        "os.version_id",
    }
)
"""Keys that every device gives of itself; ``device.id`` is proved by its key and addresses one device."""

CONVENTIONAL_LABELS: Final = frozenset(
    {"channel", "customer", "env", "group", "owner", "region", "ring", "role", "site", "tier"}
)
"""Labels that operators commonly give; any other is as good once it is known (``fleet invite --label``)."""

VALUE_CHARS_MAX: Final = 64
"""Characters of a value: a device id is the longest that is needed."""

# What is wrong in a name, value or prefix; the leftmost match is where the caret goes. A name may have - _ . inside
# only, a prefix is a DNS name (RFC 1123): both as Kubernetes has them.
_WRONG_IN_NAME = re.compile(r"\A[^A-Za-z0-9]|[^-A-Za-z0-9_.]|[-_.]\Z")
_WRONG_IN_PREFIX = re.compile(r"\A[^a-z0-9]|[^-a-z0-9.]|(?<=[-.])\.|(?<=\.)-|[-.]\Z")
_PREFIX_CHARS_MAX: Final = 253
_INTEGER = re.compile(r"[+-]?[0-9]{1,64}")
_INT64: Final = range(-(2**63), 2**63)
_TOKEN = re.compile(r"[ \t\r\n]+|==|!=|[=!(),<>]|[^ \t\r\n=!(),<>]+")
_SPACE: Final = " \t\r\n"
_SYMBOLS: Final = frozenset({"=", "==", "!=", "!", "(", ")", ",", "<", ">"})
_OUTSIDE = re.compile(r"[^-A-Za-z0-9_.]+")


class Operator(StrEnum):
    """What a requirement asks of its key; ``=`` is "in" and ``!=`` is "notin" a set of one."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    MISSING = "!"
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One condition on one key."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()
    """Sorted, each once."""

    def matches(self, values: Mapping[str, str]) -> bool:
        """Whether a device with these values fulfils it."""
        value = values.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.MISSING:
                return value is None
            case Operator.GREATER | Operator.LESS:
                # A value that is no 64-bit integer is neither greater nor less: Kubernetes' rule.
                number = None if value is None else _integer(value)
                if number is None:
                    return False
                bound = int(self.values[0])
                return number > bound if self.operator is Operator.GREATER else number < bound

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.MISSING:
                return f"!{self.key}"
            case Operator.GREATER | Operator.LESS:
                return f"{self.key}{self.operator}{self.values[0]}"
            case Operator.IN | Operator.NOT_IN if len(self.values) == 1:
                return f"{self.key}{'=' if self.operator is Operator.IN else '!='}{self.values[0]}"
            case Operator.IN | Operator.NOT_IN:
                return f"{self.key} {self.operator} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold. ``str()`` is the canonical form: sorted, each requirement once."""

    text: str
    """As it was written."""
    requirements: tuple[Requirement, ...]
    """Sorted by key."""

    def matches(self, values: Mapping[str, str]) -> bool:
        """Whether a device with these values (inventory overlaid by labels) is meant."""
        return all(requirement.matches(values) for requirement in self.requirements)

    @property
    def keys(self) -> frozenset[str]:
        """Keys that it asks about."""
        return frozenset(requirement.key for requirement in self.requirements)

    @property
    def specificity(self) -> int:
        """Number of different requirements: of two that match, the one with more is the more specific."""
        return len(self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements)


def parse_selector(text: str, *, known_keys: Collection[str] | None) -> Selector:
    """Parse a selector.

    Args:
        text: at most ``limits.SELECTOR_CHARS_MAX`` characters; empty selects everything.
        known_keys: keys that may be used; None accepts any (documents that are already signed).

    Raises:
        SelectorError: it does not parse; ``position`` is where, ``len(text)`` when something is missing.
        UnknownSelectorKey: a key is not among ``known_keys``.
    """
    parser = _Parser(text, known_keys)
    return Selector(text, tuple(sorted(set(parser.selector()))))


def selectable(text: str) -> str:
    """Turn what a machine says of itself into a value that a selector can name.

    ``raspberrypi,4-model-b`` becomes ``raspberrypi-4-model-b`` and ``Raspberry Pi 4`` ``Raspberry-Pi-4``.

    Returns:
        A valid value of at most ``limits.LABEL_CHARS_MAX`` characters, perhaps the empty one.
    """
    return _OUTSIDE.sub("-", text).strip("-_.")[: limits.LABEL_CHARS_MAX].rstrip("-_.")


def _integer(text: str) -> int | None:
    """Read a 64-bit integer as Go's strconv.ParseInt does."""
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if number in _INT64 else None


class _Token(NamedTuple):
    text: str
    """Empty at the end."""
    position: int

    @property
    def is_word(self) -> bool:
        return self.text != "" and self.text not in _SYMBOLS


class _Parser:
    """Recursive descent over tokens that know where they stand."""

    def __init__(self, text: str, known_keys: Collection[str] | None) -> None:
        self._text = text[: limits.SELECTOR_CHARS_MAX]
        self._known_keys = known_keys
        if len(text) > limits.SELECTOR_CHARS_MAX:
            raise self._error(
                f"the selector has {len(text)} characters, more than {limits.SELECTOR_CHARS_MAX}",
                limits.SELECTOR_CHARS_MAX,
                hint="give the devices a label in common and select that",
            )
        # Not str.isspace: U+00A0 and its like are wrong characters in a key, not space between tokens.
        self._tokens = [
            _Token(found.group(), found.start())
            for found in _TOKEN.finditer(text)
            if found.group()[0] not in _SPACE
        ]
        self._tokens.append(_Token("", len(text)))
        self._at = 0

    def selector(self) -> list[Requirement]:
        found: list[Requirement] = []
        if not self._next.text:
            return found
        while True:
            found.append(self._requirement())
            token = self._take()
            if not token.text:
                return found
            if token.text != ",":
                raise self._after_requirement(token)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        if token.text:
            self._at += 1
        return token

    def _requirement(self) -> Requirement:
        if self._next.text == "!":
            self._take()
            return Requirement(self._key(), Operator.MISSING)
        key = self._key()
        token = self._next
        if token.text in {"", ","}:
            return Requirement(key, Operator.EXISTS)
        self._take()
        match token.text:
            case "=" | "==":
                return Requirement(key, Operator.IN, (self._single_value(token),))
            case "!=":
                return Requirement(key, Operator.NOT_IN, (self._single_value(token),))
            case "in" | "notin":
                return Requirement(key, Operator(token.text), self._value_set(key, token))
            case ">" | "<":
                return Requirement(key, Operator(token.text), (self._bound(token),))
            case _:
                raise self._error(
                    f"expected an operator after the key {key!r}, found {_shown(token.text)!r}",
                    token.position,
                    hint=_operator_hint(key, token.text),
                )

    def _key(self) -> str:
        token = self._take()
        if not token.is_word:
            raise self._error(
                f"expected a key, found {_found(token)}",
                token.position,
                hint="write KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY, !KEY, KEY>N or KEY<N, "
                "with commas between them",
            )
        prefix, slash, name = token.text.rpartition("/")
        wrong = _first_wrong(_WRONG_IN_PREFIX, prefix, _PREFIX_CHARS_MAX) if slash else None
        if wrong is not None:
            raise self._error(
                f"the prefix of the key {_shown(token.text)!r} is not a DNS name",
                token.position + wrong,
                hint="before the slash stand lowercase letters, digits, '-' and '.', as in example.com/rack",
            )
        wrong = _first_wrong(_WRONG_IN_NAME, name, limits.LABEL_CHARS_MAX)
        if wrong is not None:
            raise self._error(
                f"not a usable key: {_shown(token.text)!r}",
                token.position + len(prefix) + len(slash) + wrong,
                hint=f"a key has 1 to {limits.LABEL_CHARS_MAX} of A-Z a-z 0-9 - _ . and begins and ends "
                "with a letter or digit",
            )
        if self._known_keys is not None and token.text not in self._known_keys:
            raise self._unknown(token)
        return token.text

    def _single_value(self, operator: _Token) -> str:
        token = self._next
        if token.text in {"", ","}:
            return ""
        self._take()
        if token.is_word:
            return self._value(token)
        hint = "values are written as they are, without brackets"
        if token.text == "(":
            hint = "for a set of values write KEY in (A,B) or KEY notin (A,B)"
        elif token.text in {"=", "==", ">", "<"}:
            hint = "the operators are =, ==, !=, in, notin, > and <"
        raise self._error(
            f"expected a value after {operator.text!r}, found {_found(token)}", token.position, hint=hint
        )

    def _value_set(self, key: str, operator: _Token) -> tuple[str, ...]:
        token = self._take()
        example = f"write {key} {operator.text} (A,B)"
        if token.text != "(":
            raise self._error(
                f"expected '(' after {operator.text!r}, found {_found(token)}", token.position, hint=example
            )
        if self._next.text == ")":
            raise self._error(
                f"{operator.text!r} needs at least one value",
                self._next.position,
                hint=f"{example}; for the empty value {key}= or {key}!=",
            )
        values: set[str] = set()
        while True:
            # As in Kubernetes a missing value between commas or brackets is the empty one.
            values.add(self._value(self._take()) if self._next.is_word else "")
            token = self._take()
            if token.text == ")":
                return tuple(sorted(values))
            if token.text != ",":
                raise self._error(
                    f"expected ',' or ')' in the set of values, found {_found(token)}",
                    token.position,
                    hint="values are separated by commas and have no spaces in them",
                )

    def _bound(self, operator: _Token) -> str:
        token = self._take()
        number = _integer(token.text)
        if token.is_word and number is not None and token.text[0].isdigit():
            return str(number)
        hint = f"{operator.text!r} compares integers from 0 to 2^63-1"
        if token.text == "=":
            hint = "there is no '>=' or '<=': write >4 for 5 and more, <6 for 5 and less"
        raise self._error(
            f"expected an integer after {operator.text!r}, found {_found(token)}", token.position, hint=hint
        )

    def _value(self, token: _Token) -> str:
        wrong = _first_wrong(_WRONG_IN_NAME, token.text, VALUE_CHARS_MAX)
        if wrong is not None:
            raise self._error(
                f"not a usable value: {_shown(token.text)!r}",
                token.position + wrong,
                hint=f"a value has at most {VALUE_CHARS_MAX} of A-Z a-z 0-9 - _ . and begins and ends "
                "with a letter or digit" + ("; quotes are not needed" if token.text[0] in "\"'`" else ""),
            )
        return token.text

    def _after_requirement(self, token: _Token) -> SelectorError:
        hint = "conditions are separated by commas, and all of them must hold"
        if token.text in {"or", "||", "|", "OR"}:
            hint = "there is no 'or': write KEY in (A,B), or give two artifacts or deployments"
        return self._error(f"expected ',' or the end, found {_found(token)}", token.position, hint=hint)

    def _unknown(self, token: _Token) -> UnknownSelectorKey:
        known = sorted(self._known_keys or ())
        near = difflib.get_close_matches(token.text, known, n=1, cutoff=0.6)
        hint = f"known keys: {', '.join(known)}"
        if near:
            hint = f"did you mean {near[0]!r}? {hint}"
        return UnknownSelectorKey(
            f"no device has the key {token.text!r}",
            text=_shown(self._text),
            position=token.position,
            hint=hint,
        )

    def _error(self, message: str, position: int, *, hint: str) -> SelectorError:
        return SelectorError(message, text=_shown(self._text), position=position, hint=hint)


def _shown(text: str) -> str:
    """One column per character and nothing that moves a terminal's cursor, so that the caret is right."""
    return "".join(character if character.isprintable() else " " for character in text)


def _found(token: _Token) -> str:
    return repr(_shown(token.text)) if token.text else "the end"


def _first_wrong(wrong: re.Pattern[str], text: str, length_max: int) -> int | None:
    """Index of the first character that makes ``text`` unusable; None when it is usable."""
    if not text:
        return 0
    found = wrong.search(text)
    if found is not None:
        return min(found.start(), length_max)
    return length_max if len(text) > length_max else None


def _operator_hint(key: str, found: str) -> str:
    if found in {"&&", "&", "and", "AND"}:
        return "conditions are separated by commas"
    if found in {"not", "NOT"}:
        return f"write {key} notin (A,B)"
    near = difflib.get_close_matches(found.lower(), ["in", "notin"], n=1)
    if near:
        return f"did you mean {key} {near[0]} (A,B)?"
    return f"write {key}=VALUE, {key}!=VALUE, {key} in (A,B), or a comma before the next condition"
