"""Every ``driftseed`` command that the documentation shows is one that there is, with those options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

import pytest
import typer.main

import support_docs as docs
from driftseed.cli.main import app

PAGES: Final = sorted(
    [
        docs.ROOT / "README.md",
        docs.ROOT / "CONTRIBUTING.md",
        docs.ROOT / "SECURITY.md",
        *docs.DOCS.rglob("*.md"),
        *(docs.ROOT / "packaging").rglob("*.md"),
    ]
)
BLOCK: Final = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN: Final = re.compile(r"`(driftseed(?: [^`]+)?)`")
ENDS: Final = frozenset({"|", ">", ">>", "<", "&", "&&", "||", ";"})
ROOT: Final[Any] = typer.main.get_command(app)


def words_of(line: str) -> list[str]:
    """The words of the ``driftseed`` command in a line of shell; none when it has no such command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split = True
    words = list(lexer)
    start = next((at for at, word in enumerate(words) if re.fullmatch(r"(.*/)?driftseed", word)), None)
    if start is None:
        return []
    end = next((at for at, word in enumerate(words) if at > start and word in ENDS), len(words))
    return words[start + 1 : end]


def shown_in_blocks(text: str) -> Iterator[list[str]]:
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\S*/)?driftseed ", line) and (words := words_of(line)):
                yield words


def shown_in_spans(text: str) -> Iterator[list[str]]:
    for span in SPAN.findall(BLOCK.sub("", text)):
        if not re.search(r" v\d+$", span):  # what a signature is over begins with such words (protocol.md)
            yield words_of(span)


def mistakes(words: list[str], *, whole: bool) -> list[str]:
    """What is wrong with a command.

    Args:
        words: what comes after ``driftseed``.
        whole: it is to be typed as it stands, so nothing that is required may be left out.
    """
    command = ROOT
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper():
            return []  # stands for any command
        if name not in command.commands:
            return [f"there is no command {name!r}"]
        command = command.commands[name]
    if hasattr(command, "commands") and not rest:
        return ["a group, not a command"] if whole else []
    given, values, found = given_to(command, rest)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if all(each.nargs == 1 for each in arguments) and values > len(arguments):
        found.append(f"{values} arguments where there are {len(arguments)}")
    if whole and not given & {"help", "version"}:
        if values < sum(each.required for each in arguments):
            found.append("an argument is missing")
        found += [
            f"{each.opts[0]} is missing"
            for each in command.params
            if each.required and each not in arguments and each.name not in given
        ]
    return found


def given_to(command: Any, words: list[str]) -> tuple[set[str], int, list[str]]:
    """Names of the options that a command is given, how many arguments, and the options that it does not have."""
    by_name = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts)}
    given: set[str] = set()
    values = 0
    unknown = []
    rest = list(words)
    while rest:
        name, has_value, _ = rest.pop(0).partition("=")
        if not name.startswith("--"):
            values += 1
        elif name in {"--help", "--version"}:
            given.add(name.removeprefix("--"))
        elif name not in by_name:
            unknown.append(f"there is no option {name}")
        else:
            given.add(by_name[name].name)
            if not by_name[name].is_flag and not has_value:
                rest = rest[1:]
    return given, values, unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(docs.ROOT)))
def test_commands_that_a_page_shows_exist(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = {
        " ".join(words): said
        for shown, whole in ((shown_in_blocks(text), True), (shown_in_spans(text), False))
        for words in shown
        if (said := mistakes(words, whole=whole))
    }
    assert wrong == {}


def test_the_pages_show_commands() -> None:
    readme = (docs.ROOT / "README.md").read_text(encoding="utf-8")
    assert {words[0] for words in shown_in_blocks(readme)} >= {"fleet", "hub", "agent", "release", "deploy"}


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("driftseed fleet make DIR", "there is no command 'make'"),
        ("driftseed deploy DIR app --to all --for=sure", "there is no option --for"),
        ("driftseed deploy DIR app", "--to is missing"),
        ("driftseed deploy DIR --to all", "an argument is missing"),
        ("driftseed deploy DIR app 1.0 --to all", "3 arguments where there are 2"),
        ("driftseed fleet", "a group, not a command"),
        ("sudo /opt/driftseed/bin/driftseed agent runs", "there is no command 'runs'"),
    ],
)
def test_a_wrong_command_is_found(line: str, mistake: str) -> None:
    assert mistakes(words_of(line), whole=True) == [mistake]


@pytest.mark.parametrize(
    "line",
    [
        'driftseed publish DIR --via "$(cat ticket)" | tee log  # hands it over',
        "driftseed fleet invite DIR --uses=10 --label site=glasgow > ticket",
        "driftseed agent config upload_limit_bytes_s=1000 serve_only=true",
        "driftseed --version",
    ],
)
def test_a_right_command_is_not(line: str) -> None:
    assert mistakes(words_of(line), whole=True) == []
