"""The wrapper around tests and demo keeps its promise: whatever the command does, nothing stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert has_ended(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_mounts_below_the_directory_are_undone() -> None:
    running = scratch(
        'mkdir "$TMPDIR/m" && mount -n -t tmpfs none "$TMPDIR/m" && touch "$TMPDIR/m/file" && echo "$TMPDIR"'
    )
    (directory,) = lines_of(running)
    assert running.returncode == 0
    assert not Path(directory).exists()
    assert directory not in Path("/proc/self/mountinfo").read_text()
