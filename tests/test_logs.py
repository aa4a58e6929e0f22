"""Logs: readable by people and by programs, free of secrets, and not to be forged by a peer."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed import logs
from driftseed.core import limits
from driftseed.core.errors import DiskFull, Misuse

TICKET = "driftseed1" + "a" * 200


def raised(error: Exception) -> Exception:
    """The error with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


@contextmanager
def configured(options: logs.LogOptions, stream: io.StringIO | None = None) -> Iterator[io.StringIO]:
    out = io.StringIO() if stream is None else stream
    log = logs.configure(options, stream=out)
    try:
        yield out
    finally:
        log.close()


def as_json(name: str = "driftseed.test", level: str = "info", /, **fields: object) -> dict[str, Any]:
    with configured(logs.LogOptions(format=logs.LogFormat.JSON, level=logs.LogLevel.DEBUG)) as out:
        getattr(logs.get(name), level)("something-happened", **fields)
    line: dict[str, Any] = json.loads(out.getvalue())
    return line


def as_people(**fields: object) -> str:
    with configured(logs.LogOptions()) as out:
        logs.get("driftseed.net.link").info("something-happened", **fields)
    return out.getvalue()


def test_a_json_record_has_time_level_logger_event_and_fields() -> None:
    entry = as_json("driftseed.net.link", "warning", device="ab", attempts=3, path=None, share=0.5, ok=True)
    assert entry.pop("ts").endswith("Z")
    assert entry == {
        "level": "warning",
        "logger": "driftseed.net.link",
        "event": "something-happened",
        "fields": {"device": "ab", "attempts": 3, "path": None, "share": 0.5, "ok": True},
    }


def test_the_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "e", None, None)
    record.created = 1769850842.0005
    with configured(logs.LogOptions(format=logs.LogFormat.JSON)) as out:
        logging.getLogger("driftseed.x").handle(record)
    assert json.loads(out.getvalue())["ts"] == "2026-01-31T09:14:02.000Z"


def test_a_record_for_people_is_one_line_of_words() -> None:
    line = as_people(device="ab12", reason="not a member", bytes=5, address="127.0.0.1:4433")
    assert line.split(" ", 1)[1] == (
        'info net.link: something-happened device=ab12 reason="not a member" bytes=5 address=127.0.0.1:4433\n'
    )


def test_an_event_below_the_level_is_not_written() -> None:
    with configured(logs.LogOptions(level=logs.LogLevel.WARNING)) as out:
        logs.get("driftseed.x").info("chatter")
        logs.get("driftseed.x").warning("trouble")
    assert "chatter" not in out.getvalue()
    assert "trouble" in out.getvalue()


def test_other_libraries_are_heard_from_warning_on() -> None:
    with configured(logs.LogOptions(format=logs.LogFormat.JSON, level=logs.LogLevel.DEBUG)) as out:
        logging.getLogger("elsewhere").info("chatter")
        logging.getLogger("elsewhere").warning("a socket %s", "leaks")
    entry = json.loads(out.getvalue())
    assert (entry["logger"], entry["event"]) == ("elsewhere", "a socket leaks")


def test_fields_may_come_by_the_standard_librarys_own_way() -> None:
    with configured(logs.LogOptions(format=logs.LogFormat.JSON)) as out:
        logging.getLogger("driftseed.x").info("linked", extra={"fields": {"peer": "ab", "ticket": TICKET}})
    assert json.loads(out.getvalue())["fields"] == {"peer": "ab", "ticket": "[secret]"}


def test_a_percent_sign_in_an_event_is_not_a_format() -> None:
    with configured(logs.LogOptions()) as out:
        logs.get("driftseed.x").info("disk-90%s-full")
    assert "disk-90%s-full" in out.getvalue()


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["passphrase", "key_password", "secret", "invitation", "join_ticket", "private_key", "api_token"]
)
def test_a_field_with_a_telling_name_is_blotted_out(name: str) -> None:
    assert as_json(**{name: "hunter2", "nested": {name: "hunter2"}})["fields"] == {
        name: "[secret]",
        "nested": {name: "[secret]"},
    }


def test_bytes_are_counted_and_never_shown() -> None:
    assert as_json(data=b"hunter2", items=[bytearray(3)])["fields"] == {
        "data": "<7 bytes>",
        "items": ["<3 bytes>"],
    }


def test_a_ticket_is_blotted_out_wherever_it_stands() -> None:
    for output in (
        as_people(argv=f"agent join {TICKET} --data x"),
        json.dumps(as_json(argv=["join", TICKET], error=ValueError(TICKET))),
    ):
        assert "aaaaaaaa" not in output
        assert "driftseed1[secret]" in output


def test_a_ticket_in_an_event_or_a_traceback_is_blotted_out() -> None:
    for form in logs.LogFormat:
        with configured(logs.LogOptions(format=form)) as out:
            logging.getLogger("elsewhere").warning("bad ticket %s", TICKET)
            logs.get("driftseed.x").exception("join-failed", raised(ValueError(TICKET)))
        assert "aaaaaaaa" not in out.getvalue()


def test_a_ticket_that_is_cut_by_the_length_limit_is_still_blotted_out() -> None:
    text = "x" * (limits.LOG_VALUE_CHARS_MAX - 30) + " " + TICKET
    assert "aaaa" not in as_people(text=text)


# --- what a peer sent ----------------------------------------------------------------------------


def test_a_peer_cannot_forge_a_line_or_move_the_cursor() -> None:
    nasty = 'x\n2026-01-31T09:14:02Z error agent: hacked\x1b[2J\r\u2028\u202e"\\'
    line = as_people(said=nasty)
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    assert json.loads(json.dumps(as_json(said=nasty)))["fields"]["said"] == nasty


@given(st.text(), st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_any_text_gives_one_printable_line_in_both_formats(text: str, nested: Mapping[str, str]) -> None:
    for form in logs.LogFormat:
        with configured(logs.LogOptions(format=form)) as out:
            logs.get("driftseed.x").info("received", text=text, nested=nested)
        (line,) = out.getvalue().splitlines()
        assert line.isprintable()


def test_a_foreign_traceback_cannot_pass_for_a_record() -> None:
    with configured(logs.LogOptions()) as out:
        error = raised(ValueError("x\n2026-01-31T09:14:02Z error agent: hacked"))
        logs.get("driftseed.x").exception("peer-failed", error, device="ab")
    first, *rest = out.getvalue().splitlines()
    assert "peer-failed" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_an_exception_in_json_carries_its_traceback() -> None:
    with configured(logs.LogOptions(format=logs.LogFormat.JSON)) as out:
        error = raised(DiskFull("no space on /data"))
        logs.get("driftseed.x").exception("download-failed", error, deployment="d1")
    entry = json.loads(out.getvalue())
    assert entry["fields"] == {"error": "disk-full: no space on /data", "deployment": "d1"}
    assert entry["traceback"].splitlines()[-1].endswith("DiskFull: no space on /data")


def test_what_one_record_shows_is_bounded() -> None:
    whole = as_json(text="é" * limits.LOG_VALUE_CHARS_MAX, items=list(range(limits.LOG_ITEMS_MAX)))["fields"]
    assert whole == {"text": "é" * limits.LOG_VALUE_CHARS_MAX, "items": list(range(limits.LOG_ITEMS_MAX))}
    cut = as_json(text="é" * (limits.LOG_VALUE_CHARS_MAX + 1), items=list(range(limits.LOG_ITEMS_MAX + 1)))
    assert cut["fields"] == {"text": whole["text"] + "… (1025 characters)", "items": whole["items"]}
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    entry = as_json(
        text="é" * 100_000, items=list(range(10_000)), nested=nested, map=dict.fromkeys(range(999))
    )
    fields = entry["fields"]
    assert fields["text"] == "é" * limits.LOG_VALUE_CHARS_MAX + "… (100000 characters)"
    assert fields["items"] == list(range(limits.LOG_ITEMS_MAX))
    assert len(fields["map"]) == limits.LOG_ITEMS_MAX
    assert len(json.dumps(fields["nested"])) < 2 * limits.LOG_VALUE_CHARS_MAX


def test_values_that_json_does_not_know_are_written_as_text() -> None:
    fields = as_json(rate=float("nan"), path=Path("/data"), ids=frozenset({"b", "a"}), pair=(1, 2))["fields"]
    assert fields == {"rate": "nan", "path": "/data", "ids": ["a", "b"], "pair": [1, 2]}


# --- files ---------------------------------------------------------------------------------------


def test_a_log_file_is_rotated_by_size_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    with configured(logs.LogOptions(file=path, file_bytes=2000, files_kept=2)):
        for number in range(100):
            logs.get("driftseed.x").info("tick", number=number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["agent.log", "agent.log.1", "agent.log.2"]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert "number=99" in path.read_text(encoding="utf-8")


def test_a_file_that_logrotate_moved_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    with configured(logs.LogOptions(file=path, file_bytes=0)):
        logs.get("driftseed.x").info("before")
        path.rename(tmp_path / "agent.log.1")
        logs.get("driftseed.x").info("after")
    assert "after" in path.read_text(encoding="utf-8")
    assert "before" in (tmp_path / "agent.log.1").read_text(encoding="utf-8")


def test_a_log_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"cannot write the log file .*nowhere.*: No such file or directory"):
        logs.configure(logs.LogOptions(file=tmp_path / "nowhere" / "agent.log"))
    assert list(tmp_path.iterdir()) == []


class SometimesFull(io.StringIO):
    """A stream on a disk that is full for a while."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_records_that_a_full_disk_swallows_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stream = SometimesFull()
    with configured(logs.LogOptions(format=logs.LogFormat.JSON), stream):
        stream.full = True
        logs.get("driftseed.x").info("one")
        logs.get("driftseed.x").info("two")
        stream.full = False
        logs.get("driftseed.x").info("three")
        logs.get("driftseed.x").info("four")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["event"] for entry in entries] == ["log-records-lost", "three", "four"]
    assert entries[0]["fields"] == {"count": 2}
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_a_log_file_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for file_bytes in (0, 2000):
        with configured(logs.LogOptions(file=Path("/dev/full"), file_bytes=file_bytes)):
            for _ in range(50):
                logs.get("driftseed.x").info("tick", text="x" * 500)
    assert capsys.readouterr().err == ""


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("cannot be shown")


def test_a_fault_of_our_own_while_writing_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with configured(logs.LogOptions()):
        logs.get("driftseed.x").info("tick", value=Unprintable())
    assert "ValueError: cannot be shown" in capsys.readouterr().err


# --- the process ---------------------------------------------------------------------------------


def test_closing_gives_the_process_back_as_it_was() -> None:
    ours, root = logging.getLogger("driftseed"), logging.getLogger()
    before = (ours.level, root.level, list(root.handlers))
    with configured(logs.LogOptions(level=logs.LogLevel.DEBUG)):
        assert ours.level == logging.DEBUG
    assert (ours.level, root.level, list(root.handlers)) == before


def test_the_standard_error_stream_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.configure(logs.LogOptions())
    logs.get("driftseed.x").info("hello")
    log.close()
    captured = capsys.readouterr()
    assert "hello" in captured.err
    assert captured.out == ""
    assert not sys.stderr.closed
