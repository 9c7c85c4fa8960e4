"""`make demo` as a newcomer runs it: told step by step, true to its exit status, and gone when it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machines.simulator import QINGCLOUD_SIM, needs_root, run

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
HEADLINE = re.compile(r"^\[(\d+)/(\d+)\] ", re.MULTILINE)
NAME = re.compile(r"demo[0-9a-f]{6}")

pytestmark = [needs_root, pytest.mark.timeout(180)]

Start = Callable[..., "subprocess.Popen[str]"]


def start_demo(scratch: Path, *args: str, path: str = "") -> "subprocess.Popen[str]":
    environment = os.environ | {"TMPDIR": str(scratch), "PATH": f"{path}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    return subprocess.Popen(
        [sys.executable, DEMO, *args], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(demo: "subprocess.Popen[str]") -> None:
    """Whatever a test did: a signal lets the demo clean up."""
    if demo.poll() is None:
        demo.terminate()
        demo.communicate(timeout=90)
    assert demo.stdout is not None
    demo.stdout.close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short path, which the demo has to leave empty."""
    path = Path(tempfile.mkdtemp(prefix="d"))
    yield path
    path.rmdir()


@pytest.fixture
def start(scratch: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def starting(*args: str, path: str = "") -> "subprocess.Popen[str]":
        started.append(start_demo(scratch, *args, path=path))
        return started[-1]

    yield starting
    for demo in started:
        end(demo)


@pytest.fixture(scope="module")
def whole_story() -> Iterator["subprocess.Popen[str]"]:
    """A demo that runs to its end while the other tests have theirs: runs coexist."""
    path = Path(tempfile.mkdtemp(prefix="d"))
    demo = start_demo(path)
    yield demo
    end(demo)
    path.rmdir()


def read_until(demo: "subprocess.Popen[str]", words: str) -> str:
    """What it says up to the line with *words*."""
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"the demo ended without {words!r}:\n{said}")


def name_in(said: str) -> str:
    found = NAME.search(said)
    assert found is not None, said
    return found[0]


def left_of(name: str) -> list[str]:
    """What is there of the demo of this name, as the machine itself shows it."""
    left = [str(path) for path in Path("/run/netns").glob(f"*{name}*")] + [str(p) for p in Path("/run").glob(name)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"/{name}".encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    left.append(f"process {entry.name}")
            except OSError:
                continue  # it has ended
    links = run("ip", "link").stdout
    return left + ([f"links:\n{links}"] if name in links else [])


@pytest.mark.usefixtures("whole_story")
class TestEnd:
    @pytest.mark.parametrize(
        ("number", "status", "moment"),
        [(signal.SIGINT, 130, "[5/"), (signal.SIGTERM, 143, "[1/")],
    )
    def test_a_signal_ends_it_and_leaves_nothing(
        self, start: Start, number: signal.Signals, status: int, moment: str
    ) -> None:
        demo = start()
        said = read_until(demo, moment)
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=90)
        assert demo.returncode == status, rest
        assert f"{number.name}: cleaning up" in rest
        assert left_of(name_in(said)) == []

    def test_a_step_that_fails_is_explained_and_leaves_nothing(self, start: Start, tmp_path: Path) -> None:
        ping = tmp_path / "ping"
        ping.write_text("#!/bin/sh\necho lost in the dark >&2\nexit 1\n")
        ping.chmod(0o755)
        demo = start(path=str(tmp_path))
        said, _ = demo.communicate(timeout=90)
        assert demo.returncode == 1, said
        story, _, failure = said.partition("failed\n")
        assert "[7/" in story
        assert "expected: success of: nsenter" in failure
        assert "lost in the dark" in failure
        assert "agent.log:" in failure
        assert left_of(name_in(said)) == []

    def test_a_demo_that_stays_up_works_until_it_is_taken_down(self, start: Start) -> None:
        demo = start("--keep")
        said, _ = demo.communicate(timeout=90)
        name = name_in(said)
        try:
            assert demo.returncode == 0, said
            assert left_of(name)
            status, added = (
                next(line for line in said.splitlines() if line.startswith("  ") and words in line and name in line)
                for words in ("qingagent status", "  CNI_COMMAND=ADD")
            )
            assert "ready:       yes" in run("sh", "-c", status).stdout
            run("ip", "netns", "add", f"{name}-b4")
            assert f'"sandbox":"/run/netns/{name}-b4"' in run("sh", "-c", added).stdout
            assert name in run(QINGCLOUD_SIM, "status", "--name", name).stdout
        finally:
            run(*said.splitlines()[-1].split())
        assert left_of(name) == []

    def test_without_a_tool_it_says_so(self, tmp_path: Path) -> None:
        done = run(sys.executable, str(DEMO), check=False, env={"PATH": str(tmp_path)})
        assert done.returncode == 4
        assert "ip, nft, nsenter, ping: missing" in done.stderr

    def test_only_a_demo_is_taken_down(self, tmp_path: Path) -> None:
        done = run(sys.executable, str(DEMO), "--take-down", str(tmp_path), check=False)
        assert done.returncode == 2
        assert tmp_path.is_dir()


def test_every_step_is_announced_and_holds(whole_story: "subprocess.Popen[str]") -> None:
    said, _ = whole_story.communicate(timeout=120)
    assert whole_story.returncode == 0, said
    steps = [(int(number), int(count)) for number, count in HEADLINE.findall(said)]
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    assert len(re.findall(r"^ +ok \([\d.]+ s\)$", said, re.MULTILINE)) == len(steps) > 10
    for words in (
        f"All {len(steps)} steps held",
        "30 of 30 are answered",
        "all seen from 172.20.",
        "anti-spoofing is off on the two gateways and on nothing else",
        "NIC again, and no call to the cloud",
        "... host1: ",
    ):
        assert words in said
    assert "\x1b" not in said
    assert "\r" not in said
    assert left_of(name_in(said)) == []
