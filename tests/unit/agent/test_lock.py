"""One agent per network namespace, by a lock that only root can take."""

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qingcloud_cni.agent.process import lock
from qingcloud_cni.agent.process.lock import agent_lock
from qingcloud_cni.core.errors import AlreadyRunning, StartRefused, exit_status

HOLD = """
import pathlib, sys
from qingcloud_cni.agent.process import lock
from qingcloud_cni.core.errors import AlreadyRunning, exit_status
lock.LOCKS, lock.NAME = pathlib.Path(sys.argv[1]), chr(0) + sys.argv[2]
try:
    with lock.agent_lock():
        print("held", flush=True)
        sys.stdin.read()
except AlreadyRunning as err:
    sys.exit(exit_status(err))
"""
CAN_UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Directory and name of this test's own: an agent may be running on this machine."""
    own = tmp_path / "locks"
    monkeypatch.setattr(lock, "LOCKS", own)
    monkeypatch.setattr(lock, "NAME", f"\0qingcloud-cni/test{tmp_path}")
    return own


def holder(*prefix: str) -> "subprocess.Popen[str]":
    command = [*prefix, sys.executable, "-c", HOLD, str(lock.LOCKS), lock.NAME.removeprefix("\0")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_taker_is_refused_until_the_first_lets_go(place: Path) -> None:
    with agent_lock():
        (path,) = place.iterdir()
        assert path.name == str(Path("/proc/self/ns/net").stat().st_ino)
        assert [stat.S_IMODE(p.stat().st_mode) for p in (path, place)] == [0o600, 0o700]
        with (
            pytest.raises(AlreadyRunning, match="another agent runs in this network namespace") as refused,
            agent_lock(),
        ):
            pass
        assert exit_status(refused.value) == 3
    assert not place.exists()
    with agent_lock():
        pass


def test_another_process_is_refused() -> None:
    with agent_lock(), holder() as process:
        assert process.communicate(timeout=30)[0] == ""
        assert process.returncode == 3


def test_the_lock_goes_with_its_process_however_it_ends() -> None:
    with holder() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning), agent_lock():
            pass
        process.kill()
        process.wait(30)
    with agent_lock():
        pass


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs the right to make network namespaces")
def test_another_network_namespace_has_a_lock_of_its_own(place: Path) -> None:
    with agent_lock(), holder("unshare", "--net") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert len(list(place.iterdir())) == 2
        assert process.communicate("", timeout=30)[0] == ""
        assert process.returncode == 0


@pytest.mark.parametrize("listens", [False, True])
def test_the_holder_of_the_abstract_name_stops_nobody(listens: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A process without rights can; an agent of an earlier version does, so it is worth a line."""
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(lock.NAME)
        if listens:
            taken.listen()
        with agent_lock():
            assert [line.message for line in caplog.records] == ["lock.name-taken"]


def test_a_lock_whose_file_was_removed_is_not_taken_for_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that ends removes its file: who opened that before must not lock a file without a name."""
    flock = fcntl.flock
    calls: list[int] = []

    def meanwhile(file: int, how: int) -> None:
        if not calls:
            next(place.iterdir()).unlink()
        calls.append(file)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    with agent_lock(), pytest.raises(AlreadyRunning), agent_lock():
        pass
    assert len(calls) == 3 + lock.TRIES  # one more looks for stale files


def test_the_directory_must_be_roots_alone(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(StartRefused, match=f"directory {place}: rejected: other users may change"), agent_lock():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_nobody_else_can_take_it(place: Path) -> None:
    """Neither in the directory of an agent that runs, nor before one was started."""
    script = (
        "import fcntl, os, sys; os.setresuid(65534, 65534, 65534);"
        " fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
    )
    with agent_lock():
        for target in (*place.iterdir(), place):
            done = subprocess.run([sys.executable, "-c", script, target], capture_output=True, check=False)
            assert b"PermissionError" in done.stderr


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs the right to make network namespaces")
def test_files_of_killed_agents_are_removed_and_no_start_is_disturbed(place: Path) -> None:
    with holder("unshare", "--net") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "held\n"
        killed.kill()
    (stale,) = place.iterdir()
    holders = [holder("unshare", "--net") for _ in range(8)]
    for process in holders:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    files = set(place.iterdir())
    assert len(files) == len(holders)
    for process in holders:
        process.communicate("", timeout=30)
    assert [process.returncode for process in holders] == [0] * len(holders)
    assert not stale.exists()
    assert not place.exists()
