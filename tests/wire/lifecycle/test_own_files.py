"""What is removed under a running agent is back within 5 seconds, as an operator sees it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from machines.hosts import Host, NewHost
from machines.simulator import eventually, needs_root, run
from qingcloud_cni.agent.process.lock import LOCKS

pytestmark = needs_root
HOSTS = 3
NICS = 2
SECONDS = 5.0


def picture(host: Host) -> dict[str, str]:
    """Every place of the agent, with kind, owner and mode."""
    wal, counter = host.state_dir / "agent.db-wal", host.run_dir / "agent.seal"
    database, boot_time = host.state_dir / "agent.db", host.state_dir / "boot-time"
    files = [host.socket, host.token_file, counter, host.spool, database, wal, boot_time, lock_of(host)]
    return {str(path): describe(path) for path in (host.run_dir, host.state_dir, *files)} | {
        str(host.parking): str(host.parking.stat().st_ino) if host.parking.exists() else "missing"
    }


def describe(path: Path) -> str:
    if not os.path.lexists(path):
        return "missing"
    status = path.lstat()
    return f"{status.st_mode:o} of {status.st_uid}"


def lock_of(host: Host) -> Path:
    return LOCKS / str(Path(f"/run/netns/{host.netns}").stat().st_ino)


def remove_run_directory(host: Host) -> None:
    shutil.rmtree(host.run_dir)


def remove_state_directory(host: Host) -> None:
    shutil.rmtree(host.state_dir)


def remove_everything(host: Host) -> None:
    remove_run_directory(host)
    remove_state_directory(host)
    lock_of(host).unlink()
    delete_parking(host)


def replace_run_directory(host: Host) -> None:
    host.run_dir.rename(host.run_dir.with_name("elsewhere"))
    host.run_dir.mkdir(mode=0o700)


def replace_run_directory_by_a_file(host: Host) -> None:
    shutil.rmtree(host.run_dir)
    host.run_dir.touch()


def remove_socket(host: Host) -> None:
    host.socket.unlink()


def replace_socket_by_a_dead_one(host: Host) -> None:
    host.socket.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(host.socket))


def remove_token(host: Host) -> None:
    host.token_file.unlink()


def remove_spool(host: Host) -> None:
    shutil.rmtree(host.spool, ignore_errors=True)


def remove_counter(host: Host) -> None:
    (host.run_dir / "agent.seal").unlink()


def remove_database(host: Host) -> None:
    (host.state_dir / "agent.db").unlink()


def remove_wal(host: Host) -> None:
    (host.state_dir / "agent.db-wal").unlink()


def remove_boot_time(host: Host) -> None:
    (host.state_dir / "boot-time").unlink()


def remove_lock(host: Host) -> None:
    lock_of(host).unlink()


def remove_locks(_host: Host) -> None:
    shutil.rmtree(LOCKS)


def unmount_parking(host: Host) -> None:
    subprocess.run(("umount", "-l", host.parking), check=True)


def delete_parking(host: Host) -> None:
    run("ip", "netns", "delete", host.parking.name)


REMOVALS = [
    remove_run_directory, remove_state_directory, remove_everything, replace_run_directory,
    replace_run_directory_by_a_file, remove_socket, replace_socket_by_a_dead_one, remove_token, remove_spool,
    remove_counter, remove_database, remove_wal, remove_boot_time, remove_lock, remove_locks, unmount_parking,
    delete_parking,
]  # fmt: skip


@pytest.mark.parametrize("remove", REMOVALS, ids=lambda remove: remove.__name__)
def test_what_is_removed_is_back_within_5_seconds_and_requests_work(
    host: Host, remove: Callable[[Host], None]
) -> None:
    eventually(lambda: "missing" not in picture(host).values(), "all places made")
    before, events = picture(host), len(restorations(host))
    remove(host)
    begun = time.monotonic()
    eventually(lambda: picture(host) == before, "all is as before", seconds=20.0)
    assert time.monotonic() - begun < SECONDS
    eventually(lambda: len(restorations(host)) > events, "an event", seconds=2.0)
    container = host.container()
    for address in (f"unix://{host.socket}", "127.0.0.1:31080"):
        conf = host.conf(BindAddr=address)
        host.add(container, conf=conf)
        host.delete(container, conf=conf)


def restorations(host: Host) -> list[object]:
    return [*host.agent.events("file.restored"), *host.agent.events("store.set-aside")]


def test_a_link_in_place_of_the_run_directory_is_told_and_not_followed(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1)
    target = host.directory / "target"
    target.mkdir(mode=0o700)
    shutil.rmtree(host.run_dir)
    host.run_dir.symlink_to(target)
    eventually(lambda: bool(agent.events("file.obstructed")), "an event", seconds=SECONDS)
    time.sleep(2 * SECONDS)
    assert [e["detail"] for e in agent.events("file.obstructed")] == [
        f"directory {host.run_dir}: not used: it is a link; remove it"
    ]
    assert list(target.iterdir()) == []
    host.run_dir.unlink()
    eventually(lambda: host.socket.exists() and host.token_file.exists(), "both back", seconds=SECONDS)
    host.add(host.container())


def test_a_restarted_agent_finds_the_nics_in_a_namespace_whose_mount_was_removed(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(min_idle=2, max_idle=2)
    before = set(host.cloud_nics())
    delete_parking(host)
    eventually(host.parking.exists, "mounted", seconds=SECONDS)
    agent.kill()
    agent = host.start(min_idle=2, max_idle=2)
    assert {nic["nic_id"] for nic in host.nics("idle")} == before
    assert not agent.events("nic.missing")
