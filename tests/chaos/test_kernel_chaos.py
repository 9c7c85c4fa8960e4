"""`make chaos` for some seconds, as it is run for minutes; it is gone when interrupted, and sees what it must."""

import io
import os
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.promises import Promises
from chaos.record import Record
from chaos.watcher import Watcher
from machines.simulator import needs_root, run, unique_name

pytestmark = [needs_root, pytest.mark.timeout(400)]

TESTS = Path(__file__).parents[1]
SECONDS = 20.0


def start(directory: Path, seed: int, seconds: float) -> "subprocess.Popen[str]":
    words = [f"--minutes={seconds / 60}", f"--seed={seed}", f"--logs={directory / 'logs'}"]
    return subprocess.Popen(
        [sys.executable, "-m", "chaos", *words],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    with start(tmp_path, seed, SECONDS) as chaos:
        said, _ = chaos.communicate()
    assert chaos.returncode == 0, f"make chaos MINUTES={SECONDS / 60:.2f} SEED={seed}\n{said}"
    assert "all held" in said
    assert not (tmp_path / "logs").exists()


def test_interrupted_it_takes_all_away(tmp_path: Path) -> None:
    """Ctrl-C reaches the run alone: an agent or `ip` that it ended first would count as a broken claim.

    The session's end checks that nothing is left on this machine.
    """
    with start(tmp_path, 1, 600.0) as chaos:
        assert chaos.stdout is not None
        some = next((line for line in chaos.stdout if "kill -9" in line), "")
        group = ("pgrep", "--list-full", "--pgroup", str(chaos.pid))
        members = {line for _ in range(50) for line in run(*group).stdout.splitlines()}
        os.killpg(chaos.pid, signal.SIGINT)  # as a terminal does
        said, _ = chaos.communicate()
    assert not [line for line in members if "-m chaos" not in line]
    assert some
    assert chaos.returncode == 130, said
    assert "interrupted" in said
    assert "BROKEN" not in said


def test_the_watcher_sees_an_address_that_is_in_two_namespaces(tmp_path: Path) -> None:
    names = (unique_name(), unique_name())
    out = io.StringIO()
    record = Record(out, tmp_path / "log")
    try:
        for name, addresses in zip(names, (("192.0.2.1", "192.0.2.2"), ("192.0.2.2",)), strict=True):
            run("ip", "netns", "add", name)
            for address in addresses:
                run("ip", "-n", name, "addr", "add", address, "dev", "lo")
        Watcher(Promises(), record, names, random.Random(1)).run(record.over)
    finally:
        for name in names:
            run("ip", "netns", "delete", name, check=False)
        record.close()
    (broken,) = record.broken
    assert broken.claim == f"192.0.2.2 is in {names[0]} and in {names[1]}"
    assert broken.claim in out.getvalue()
