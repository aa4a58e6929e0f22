"""The documentation says what the source says, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import support_docs as docs
from driftseed.core import errors, limits, wire

PAGES = sorted(
    path
    for path in [
        *docs.ROOT.glob("*.md"),
        *docs.DOCS.rglob("*.md"),
        *(docs.ROOT / "packaging").rglob("*.md"),
    ]
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def name(page: Path) -> str:
    return str(page.relative_to(docs.ROOT))


# --- what is made from the source ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "region"), [(page, region) for page, regions in docs.REGIONS.items() for region in regions]
)
def test_a_table_says_what_the_source_says(page: str, region: str) -> None:
    written = docs.region(text_of(docs.DOCS / page), region)
    assert written == docs.rendered(docs.REGIONS[page][region]), "run: make docs"


def test_every_limit_is_in_the_protocol_with_its_value_and_unit() -> None:
    """Counted from the module, so that a limit without a docstring cannot slip through the table's maker."""
    numbers = {
        key: value
        for key, value in vars(limits).items()
        if key.isupper() and isinstance(value, (int, float)) and key not in {"KIB", "MIB", "GIB"}
    }
    table = docs.region(text_of(docs.DOCS / "protocol.md"), "limits")
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(\w+)` \| ([\d.]+)[^|]* \| (.*) \|$", table, re.MULTILINE)
    }
    assert {key: float(value) for key, (value, _) in rows.items()} == {
        k: float(v) for k, v in numbers.items()
    }
    assert all(re.match(r"[A-Z][a-z]+[ ,]", meaning) for _, meaning in rows.values())


def test_every_frame_type_is_in_the_protocol() -> None:
    table = docs.region(text_of(docs.DOCS / "protocol.md"), "frames")
    rows = re.findall(r"^\| `(0x..)` \| (\w+) \|", table, re.MULTILINE)
    assert {int(number, 16): frame for number, frame in rows} == {
        number: kind.__name__ for number, kind in wire.TYPES.items()
    }


def test_every_error_has_an_exit_code_and_a_reason_of_its_own() -> None:
    classes = docs.error_classes()
    codes, reasons = [kind.exit_code for kind in classes], [kind.reason for kind in classes]
    assert len(set(codes)) == len(codes)
    assert len(set(reasons)) == len(reasons)
    assert 1 not in codes


@pytest.mark.parametrize(
    ("group", "codes"),
    [
        (errors.Misuse, range(10, 30)),
        (errors.TrustError, range(30, 50)),
        (errors.TransportError, range(50, 70)),
        (errors.DeviceError, range(70, 90)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_exit_code_says_whose_fault_it_is(group: type[errors.DriftseedError], codes: range) -> None:
    for kind in docs.error_classes():
        assert issubclass(kind, group) == (kind.exit_code in codes), kind.__name__


def test_marks_in_pages_are_known_to_the_maker_and_in_pairs() -> None:
    for page in docs.DOCS.glob("*.md"):
        begun = re.findall(r"<!-- (\w+):begin -->", text_of(page))
        ended = re.findall(r"<!-- (\w+):end -->", text_of(page))
        assert begun == ended == list(docs.REGIONS.get(page.name, {}))


# --- what people wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), f"{link}: not a link to follow safely"
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), f"{name(page)}: {link}"
        assert not anchor or anchor in anchors(linked), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(docs.DOCS)], ids=name)
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    for named in re.findall(r"`(\w+/\w+\.py)`", text_of(page)):
        assert (docs.ROOT / "src" / "driftseed" / named).is_file(), named


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_limits_that_a_page_names_exist(page: Path) -> None:
    for named in re.findall(r"`([A-Z]+(?:_[A-Z]+)*_(?:MAX|S|BYTES))`", text_of(page)):
        assert hasattr(limits, named), named


def test_the_architecture_page_follows_the_packages_that_there_are() -> None:
    page = text_of(docs.DOCS / "architecture.md")
    packages = {path.parent.name for path in (docs.ROOT / "src" / "driftseed").glob("*/__init__.py")}
    table = page[page.index("| package |") : page.index("`store` has the file")]
    described = {
        word
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for word in re.findall(r"`(\w+)`", row)
    }
    assert described == packages


def test_every_decision_is_in_the_index_and_has_its_parts() -> None:
    directory = docs.DOCS / "adr"
    pages = sorted(path for path in directory.glob("*.md") if path.name != "README.md")
    index = LINK.findall(text_of(directory / "README.md"))
    assert index == [page.name for page in pages]
    for number, page in enumerate(pages, 1):
        text = text_of(page)
        assert text.startswith(f"# {number:04}: ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
            "Alternatives",
        ], page.name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((docs.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    wanted = {re.split(r"[\[<>=~!; ]", line)[0] for line in lines} - {"driftseed"}
    page = text_of(docs.DOCS / "dependencies.md")
    assert {package for package in wanted if f"`{package}`" not in page} == set()


def test_the_makers_words_cover_every_type_that_travels() -> None:
    for kind in wire.TYPES.values():
        assert docs.struct_region(kind).count("\n| `") == len(inspect.signature(kind).parameters)
