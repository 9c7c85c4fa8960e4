"""The agent's clock does not jump when the host's is set, and the next agent learns of it."""

import random
import time
from pathlib import Path

import pytest

from qingcloud_cni.agent.base import clock as clock_module
from qingcloud_cni.agent.base.clock import BootTime, SystemClock, delay_after


class SetClock:
    """Stands in for the module `time`: a host whose clock can be set, and that has been up for a while."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.boot, self.up = 1_700_000_000.0, 500.0

    def time(self) -> float:
        return self.boot + self.up

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME  # goes on while the host is suspended
        return self.up


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    made = SetClock()
    monkeypatch.setattr(clock_module, "time", made)
    return made


@pytest.mark.parametrize("jump", [-86_400.0, -2.0, 3600.0])
def test_what_passes_is_what_passes_however_the_clock_is_set(host: SetClock, jump: float) -> None:
    clock = SystemClock()
    begun = clock.now()
    assert begun == host.time()
    host.boot += jump
    host.up += 30.0
    assert clock.now() - begun == 30.0
    assert clock.wall() == host.time()
    assert clock.uptime() == 530.0


def test_the_next_agent_of_the_same_boot_learns_how_far_the_clock_was_set_forward(
    host: SetClock, tmp_path: Path
) -> None:
    path = tmp_path / "boot-time"
    assert BootTime(path).set_forward(SystemClock()) == 0.0  # there was none
    BootTime(path).write(SystemClock())
    assert BootTime(path).set_forward(SystemClock()) == 0.0
    host.boot += 0.5  # no clock is that exact
    assert BootTime(path).set_forward(SystemClock()) == 0.0
    host.boot += 3600.0
    assert BootTime(path).set_forward(SystemClock()) == 3600.5
    BootTime(path).write(SystemClock())
    assert BootTime(path).set_forward(SystemClock()) == 0.0
    host.boot -= 7200.0  # what lies ahead shows by itself
    assert BootTime(path).set_forward(SystemClock()) == 0.0


def test_after_a_reboot_nothing_is_concluded(host: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, boot_id = tmp_path / "boot-time", tmp_path / "boot-id"
    BootTime(path).write(SystemClock())
    boot_id.write_text("another\n")
    monkeypatch.setattr(clock_module, "BOOT_ID", boot_id)
    host.boot += 3600.0
    assert BootTime(path).set_forward(SystemClock()) == 0.0


@pytest.mark.parametrize("text", ["", "nonsense", "one two", "a b c", "\0"])
def test_a_file_that_cannot_be_read_is_as_none(host: SetClock, tmp_path: Path, text: str) -> None:
    path = tmp_path / "boot-time"
    path.write_text(text)
    assert BootTime(path).set_forward(SystemClock()) == 0.0
    assert host.up == 500.0


def test_a_disk_that_refuses_is_no_reason_not_to_start(host: SetClock, tmp_path: Path) -> None:
    BootTime(tmp_path / "absent" / "boot-time").write(SystemClock())
    assert host.up == 500.0


def test_pauses_grow_to_the_longest_and_stay_there_however_often_it_fails() -> None:
    rng = random.Random(0)
    for failures in (10, 1_025, 100_000):
        assert 45.0 <= delay_after(failures, rng) <= 75.0
    assert 0.75 <= delay_after(1, rng) <= 1.25
