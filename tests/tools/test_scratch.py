"""The wrapper around tests and demo keeps its promise: whatever the command does, nothing stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.simulator import eventually

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes mounts and namespaces")
SCRATCH = Path(__file__).parents[2] / "tools" / "scratch.py"


def scratch(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRATCH, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines_of(running: subprocess.Popen[str]) -> list[str]:
    out, _ = running.communicate(timeout=60)
    return out.splitlines()


def has_ended(pid: str) -> bool:
    """Not whether it was reaped: that is for whatever is process 1, and some never do."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_directory_is_short_and_goes_with_the_command() -> None:
    running = scratch('touch "$TMPDIR/file" && echo "$TMPDIR"')
    (directory,) = lines_of(running)
    assert running.returncode == 0
    assert len(directory) < 20
    assert not Path(directory).exists()


def test_programs_can_be_executed_in_the_directory() -> None:
    running = scratch(
        'printf "#!/bin/sh\\necho ran" >"$TMPDIR/program" && chmod +x "$TMPDIR/program" && "$TMPDIR/program"'
    )
    assert lines_of(running) == ["ran"]


def test_status_of_the_command_is_kept() -> None:
    running = scratch('echo "$TMPDIR"; exit 7')
    (directory,) = lines_of(running)
    assert running.returncode == 7
    assert not Path(directory).exists()


@pytest.mark.parametrize(
    ("sent", "felt"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM"), (signal.SIGHUP, "TERM")]
)
def test_signals_reach_the_command_and_its_cleaning_up_is_awaited(sent: signal.Signals, felt: str) -> None:
    running = scratch(f'trap "sleep 0.2; echo cleaned; exit 3" {felt}; echo "$TMPDIR"; while :; do sleep 0.05; done')
    assert running.stdout is not None
    directory = running.stdout.readline().strip()
    running.send_signal(sent)
    assert lines_of(running) == ["cleaned"]
    assert running.returncode == 3
    assert not Path(directory).exists()


def test_forgotten_processes_are_ended() -> None:
    running = scratch('setsid sleep 600 >/dev/null 2>&1 & echo "$!"; echo "$TMPDIR"')
    pid, directory = lines_of(running)
    assert running.returncode == 0
    assert not Path(directory).exists()
    eventually(lambda: has_ended(pid), f"the end of process {pid}")  # its memory goes before it does


def test_a_forgotten_process_without_its_environment_is_known_by_its_arguments() -> None:
    running = scratch(
        'touch "$TMPDIR/file"; env -i setsid tail -f "$TMPDIR/file" >/dev/null 2>&1 &'
        'echo "$!"; echo "$TMPDIR"; sleep 0.2'
    )
    pid, directory = lines_of(running)
    assert not Path(directory).exists()
    eventually(lambda: has_ended(pid), f"the end of process {pid}")  # its memory goes before it does


MAKES_A_CLOUD = """
    name=s$$; touch "$QC_CLOUDS/$name"
    for space in $name-host1 $name-c1 qingcni-i-${name}host1 other$name-x; do ip netns add $space; done
    echo $name; echo $TMPDIR; echo $$
"""


def namespaces_of(name: str) -> list[str]:
    places = Path("/run/netns")
    return sorted(path.name for path in places.iterdir() if name in path.name) if places.is_dir() else []


@pytest.fixture
def others() -> Iterator[list[str]]:
    """Names of clouds of which one namespace is somebody else's, and left alone."""
    names: list[str] = []
    yield names
    for name in names:
        assert namespaces_of(name) == [f"other{name}-x"]
        subprocess.run(["ip", "netns", "delete", f"other{name}-x"], check=True)


@needs_root
@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
def test_namespaces_of_clouds_go_however_the_command_ends(others: list[str], end: str) -> None:
    name, directory, _ = lines_of(scratch(MAKES_A_CLOUD + end))
    assert not Path(directory).exists()
    others.append(name)


@needs_root
def test_what_is_left_of_a_run_that_was_killed_as_a_whole_is_removed_by_the_next_one(others: list[str]) -> None:
    """And nothing of one that goes on."""
    killed, living = (scratch(MAKES_A_CLOUD + "while :; do sleep 0.05; done") for _ in range(2))
    assert killed.stdout is not None
    assert living.stdout is not None
    name, directory, pid = (killed.stdout.readline().strip() for _ in range(3))
    spared, *_ = (living.stdout.readline().strip() for _ in range(3))
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert killed.stderr is not None
    killed.stderr.close()
    assert len(namespaces_of(name)) == 4
    assert lines_of(scratch("echo ran")) == ["ran"]
    eventually(lambda: has_ended(pid), f"the end of process {pid}")  # its memory goes before it does
    assert not Path(directory).exists()
    assert len(namespaces_of(spared)) == 4
    living.terminate()
    living.communicate(timeout=60)
    others += [name, spared]


@needs_root
def test_mounts_below_the_directory_are_undone() -> None:
    running = scratch(
        'mkdir "$TMPDIR/m" && mount -n -t tmpfs none "$TMPDIR/m" && touch "$TMPDIR/m/file" && echo "$TMPDIR"'
    )
    (directory,) = lines_of(running)
    assert running.returncode == 0
    assert not Path(directory).exists()
    assert directory not in Path("/proc/self/mountinfo").read_text()
