"""`make chaos` for some seconds, as it is run for minutes; and that it is gone when it is interrupted."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import needs_root

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
    )


def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    with start(tmp_path, seed, SECONDS) as chaos:
        said, _ = chaos.communicate()
    assert chaos.returncode == 0, f"make chaos MINUTES={SECONDS / 60:.2f} SEED={seed}\n{said}"
    assert "all held" in said
    assert not (tmp_path / "logs").exists()


def test_interrupted_it_takes_all_away(tmp_path: Path) -> None:
    """That nothing is left of it on this machine is looked for at the end of the session."""
    with start(tmp_path, 1, 600.0) as chaos:
        assert chaos.stdout is not None
        some = next((line for line in chaos.stdout if "kill -9" in line), "")
        chaos.send_signal(signal.SIGINT)
        said, _ = chaos.communicate()
    assert some
    assert chaos.returncode == 130, said
    assert "interrupted" in said
    assert "BROKEN" not in said
