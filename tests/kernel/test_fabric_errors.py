"""Errors of `qingcloud-sim`: one sentence, an exit status, nothing left behind."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from machines.simulator import QINGCLOUD_SIM, needs_root, run, running_sim, unique_name


def refused(*args: str, status: int, **kwargs: object) -> str:
    """The error of a command line."""
    done = run(QINGCLOUD_SIM, *args, check=False, **kwargs)
    assert done.returncode == status, (done.returncode, done.stderr)
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def programs(directory: Path, *names: str) -> dict[str, str]:
    """An environment in which only *names* are installed."""
    directory.mkdir(exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    return os.environ | {"PATH": str(directory)}


def test_an_unusable_name_is_refused() -> None:
    assert "'Not_This'" in refused("up", "--name", "Not_This", status=2)
    assert "12" in refused("up", "--name", "a-very-long-name", status=2)


def test_an_unusable_state_dir_is_refused() -> None:
    assert "absolute path" in refused("up", "--state-dir", "/run/with space", status=2)
    assert "too long" in refused("up", "--state-dir", "/run/" + "x" * 100, status=2)


@needs_root
def test_a_state_dir_of_someone_else_is_refused_and_kept(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    directory = tmp_path
    if len(str(directory)) > 90:
        pytest.skip("the temporary directory's path is too long for a socket")
    name = unique_name()
    assert "is not empty" in refused("up", "--name", name, "--state-dir", str(directory), status=2)
    run(QINGCLOUD_SIM, "down", "--name", name, "--state-dir", str(directory))
    assert treasure.read_text() == "mine"


def test_a_bad_topology_names_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text("limits: {nics_per_host: 3}\n")
    sentence = refused("up", "--name", unique_name(), "--topology", str(file), status=2)
    assert str(file) in sentence
    assert "limits.nics_per_host" in sentence


@needs_root
def test_a_second_simulator_of_the_same_name_is_refused() -> None:
    with running_sim() as sim:
        assert sim.name in refused("up", "--name", sim.name, status=3)
        assert sim.status()["instances"]


@needs_root
def test_a_parking_namespace_of_the_same_instance_is_respected() -> None:
    name = unique_name()
    parking = f"qingcni-i-{name}host1"
    run("ip", "netns", "add", parking)
    try:
        assert parking in refused("up", "--name", name, status=3)
        assert Path("/run/netns", parking).exists()
    finally:
        run("ip", "netns", "delete", parking)
    assert not Path("/run/qingcloud-sim", name).exists()


@needs_root
def test_without_root_it_is_refused() -> None:
    code = (
        "import os, qingcloud_cni.sim.server.server, qingcloud_cni.sim.server.topology_file\n"
        "from qingcloud_cni.cli.qingcloud_sim import main\n"
        "os.setgid(65534); os.setuid(65534); main()"
    )
    for command in ("up", "down"):
        done = run(sys.executable, "-c", code, command, "--name", unique_name(), check=False)
        assert done.returncode == 4, done.stderr
        assert done.stderr == "qingcloud-sim: the simulator makes network namespaces: run it as root\n"


@needs_root
def test_a_program_or_kernel_feature_that_is_missing_is_named(tmp_path: Path) -> None:
    name = unique_name()
    env = programs(tmp_path / "bin", "ip", "nsenter")
    assert "'nft': start failed: not installed" in refused("up", "--name", name, status=4, env=env)
    fake = tmp_path / "bin" / "nft"
    fake.write_text("#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2\nexit 1\n")
    fake.chmod(0o755)
    env["PATH"] += ":/bin"
    sentence = refused("up", "--name", name, status=4, env=env)
    assert "Operation not supported" in sentence
    assert "Operation not supported" in refused("up", "--name", name, status=4, env=env)
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(f"{name}-")]


def test_the_status_of_nothing_fails() -> None:
    name = unique_name()
    assert name in refused("status", "--name", name, status=1)


@needs_root
def test_status_shows_nics_and_calls() -> None:
    with running_sim() as sim:
        (nic,) = sim.new_nics("host1", "vxnet-pods001")
        shown = run(QINGCLOUD_SIM, "status", "--name", sim.name).stdout
        assert nic["nic_id"] in shown
        assert "AttachNics" in shown
        assert sim.status()["calls"]["CreateNics"] == 1
