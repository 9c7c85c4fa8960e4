"""Logs: one line each, JSON unless it is a terminal."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from qingcloud_cni.agent.base import logs
from qingcloud_cni.core.nics.changes import Snapshot
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.nics.table import Table


class Screen(io.StringIO):
    """Where the lines go."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(params=[False, True], ids=["json", "plain"])
def screen(request: pytest.FixtureRequest) -> Screen:
    made = Screen(is_terminal=request.param)
    logs.set_up("info", made)
    return made


@pytest.fixture
def machine() -> Screen:
    made = Screen(is_terminal=False)
    logs.set_up("debug", made)
    return made


def test_a_line_is_json_with_fixed_keys(machine: Screen) -> None:
    logs.write("cni.request", verb="ADD", code=0, error="", nic=None, seconds=0.25)
    line = json.loads(machine.getvalue())
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"level": "info", "event": "cni.request", "verb": "ADD", "code": 0, "seconds": 0.25}


def test_an_event_says_what_and_of_what(machine: Screen) -> None:
    logs.event(Event(1.0, "nic.assigned", "52:54:00:00:00:01", "net/pod/eth0", "why\nover two lines"))
    line = json.loads(machine.getvalue())
    assert (line["event"], line["nic"], line["subject"]) == ("nic.assigned", "52:54:00:00:00:01", "net/pod/eth0")
    assert line["detail"] == "why\nover two lines"
    assert len(machine.lines) == 1


@pytest.mark.parametrize("name", [
    "attachment.not-undone", "create.refused", "flows.kept", "gateway.unknown", "gateway.unsure",
    "instance.leaving", "jobs.unanswered", "links.unseen", "nic.duplicate", "nic.gone", "nic.missing",
    "nic.park-failed", "nic.quarantined", "probe.distrusted", "spool.failed", "spool.unreadable", "spool.unusable",
    "store.damaged", "store.set-aside", "vxnets.unfit",
])  # fmt: skip
def test_faults_are_warnings(name: str) -> None:
    screen = Screen(is_terminal=False)
    logs.set_up("warn", screen)
    logs.event(Event(1.0, name))
    logs.event(Event(1.0, "nic.assigned"))
    (line,) = screen.lines
    assert (json.loads(line)["level"], json.loads(line)["event"]) == ("warning", name)


def test_an_event_that_is_not_in_the_table_cannot_be_recorded() -> None:
    with pytest.raises(AssertionError, match=r"nic\.unheard-of"):
        Table(Snapshot()).note(Event(1.0, "nic.unheard-of"))


def test_the_level_holds_back_what_is_below_it(screen: Screen) -> None:
    logs.write("cloud.call", action="AttachNics")
    assert screen.lines == []
    logs.set_up("error", screen)
    logs.event(Event(1.0, "nic.gone"))
    logging.getLogger("aiohttp").error("trouble with %s", "a peer")
    assert len(screen.lines) == 1
    assert "trouble with a peer" in screen.getvalue()


def test_a_bug_shows_its_traceback(screen: Screen) -> None:
    try:
        dict[str, int]()["the key"]
    except KeyError:
        logs.bug()
    assert "KeyError: 'the key'" in screen.getvalue()
    assert "Traceback (most recent call last)" in screen.getvalue()


def test_setting_up_twice_does_not_double_the_lines(screen: Screen) -> None:
    logs.set_up("info", screen)
    logs.write("agent.started")
    assert len(screen.lines) == 1


def test_a_terminal_gets_words() -> None:
    screen = Screen(is_terminal=True)
    logs.set_up("info", screen)
    logs.event(Event(1.0, "nic.gone", "52:54:00:00:00:01"))
    time, text = screen.getvalue().split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert text == "warning nic.gone nic=52:54:00:00:00:01\n"


def test_text_that_is_no_utf_8_is_logged_all_the_same(screen: Screen) -> None:
    logs.write("cni.request", netns="/run/\udcff")
    assert "cni.request" in screen.getvalue()


def test_a_field_of_any_type_is_logged(machine: Screen) -> None:
    logs.write("agent.started", path=Path("/run"), error=KeyError("x"))
    line = json.loads(machine.getvalue())
    assert (line["path"], line["error"]) == ("/run", "'x'")


def test_a_terminal_gets_nothing_that_it_would_obey() -> None:
    terminal = Screen(is_terminal=True)
    logs.set_up("info", terminal)
    logs.write("cni.request", verb="ADD", netns="/run/\x1b]0;x\x07\u202e", error="a\nb")
    try:
        raise ValueError("\x9b31m")  # noqa: TRY301 - a bug with a name of a container in it
    except ValueError:
        logs.bug()
    assert "netns=/run/\\x1b]0;x\\x07\\u202e error=a\\nb" in terminal.lines[0]
    assert terminal.lines[-1] == "ValueError: \\x9b31m"
    assert all(line.isprintable() for line in terminal.lines)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM, errno.EPIPE])
def test_a_line_that_cannot_be_written_ends_nothing(code: int) -> None:
    class Broken(Screen):
        def write(self, _text: str) -> int:
            raise OSError(code, "x")

    logs.set_up("info", Broken(is_terminal=False))
    logs.write("agent.started", instance="i-1")
    logs.bug()
