"""A session of pytest, with workers and without: it reports what tests leave behind, and tears fixtures down."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from machines.simulator import eventually

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pathlib, subprocess, time, pytest

@pytest.fixture
def torn_down():
    yield
    pathlib.Path("torn-down").touch()

def test_leaves_a_process():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    pathlib.Path("pid").write_text(str(process.pid))
    process.returncode = 0  # no warning

def test_takes_long(torn_down):
    pathlib.Path("begun").touch()
    time.sleep(600)
"""


@pytest.fixture(params=["-n0", "-n2"])
def session(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a session in *tmp_path*, whose two tests are in one file."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # importing them takes seconds
    return [sys.executable, "-m", "pytest", "-p", "xdist", request.param, "--dist=loadfile"]


def test_a_process_that_a_test_leaves_is_reported(session: list[str], tmp_path: Path) -> None:
    command = [*session, "-k", "leaves", "--leftovers=report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    pid = (tmp_path / "pid").read_text()
    os.kill(int(pid), signal.SIGKILL)
    assert done.returncode == 0, done.stdout
    assert f"\nprocess {pid}: sleep 600\n" in done.stdout.partition("left behind on this machine")[2]
    assert done.stdout.count("\nprocess ") == 1
    assert "= 1 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tears_fixtures_down(session: list[str], tmp_path: Path, number: int) -> None:
    with subprocess.Popen([*session, "-k", "long"], cwd=tmp_path, stdout=subprocess.PIPE, process_group=0) as running:
        eventually((tmp_path / "begun").exists, "the test", seconds=60)
        os.killpg(running.pid, number)
        assert running.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
    assert (tmp_path / "torn-down").exists()
