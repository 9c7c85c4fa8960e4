"""One agent per network namespace."""

import shutil
import subprocess
import sys

import pytest

from qingcloud_cni.agent.process import listeners
from qingcloud_cni.agent.process.listeners import take_lock
from qingcloud_cni.core.errors import AlreadyRunning, exit_status

HOLD = """
import sys
from qingcloud_cni.agent.process import listeners
from qingcloud_cni.agent.process.listeners import take_lock
from qingcloud_cni.core.errors import AlreadyRunning, exit_status
listeners._LOCK = sys.argv[1]
try:
    held = take_lock()
except AlreadyRunning as err:
    sys.exit(exit_status(err))
print("held", flush=True)
sys.stdin.read()
"""
CAN_UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A name of this test's own: an agent may be running on this machine."""
    own = f"\0qingcloud-cni/test{tmp_path_factory.mktemp('lock')}"
    monkeypatch.setattr(listeners, "_LOCK", own)
    return own


def holder(name: str, *prefix: str) -> "subprocess.Popen[str]":
    command = [*prefix, sys.executable, "-c", HOLD.replace("sys.argv[1]", repr(name))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_taker_is_refused_until_the_first_lets_go() -> None:
    first = take_lock()
    with pytest.raises(AlreadyRunning, match="another agent runs in this network namespace") as refused:
        take_lock()
    assert exit_status(refused.value) == 3
    first.close()
    take_lock().close()


def test_another_process_is_refused(name: str) -> None:
    with take_lock(), holder(name) as process:
        assert process.communicate(timeout=30)[0] == ""
        assert process.returncode == 3


def test_the_lock_goes_with_its_process_however_it_ends(name: str) -> None:
    with holder(name) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning):
            take_lock()
        process.kill()
        process.wait(30)
    with take_lock() as held:
        assert held.fileno() >= 0


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs the right to make network namespaces")
def test_another_network_namespace_has_a_lock_of_its_own(name: str) -> None:
    with take_lock(), holder(name, "unshare", "--net") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert process.communicate("", timeout=30)[0] == ""
        assert process.returncode == 0
