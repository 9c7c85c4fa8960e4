"""E: what somebody removes while the agent runs."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

from attack.registry import case
from attack.scene import Scene, assert_works
from cni.answers import Answer
from machines.hosts import Host
from machines.simulator import eventually, run


@case("E", is_short=True)
def run_directory(scene: Scene) -> None:
    """The run directory is removed. Socket and token come back within seconds, and containers get NICs."""
    host = scene.host()
    shutil.rmtree(host.run_dir)
    eventually(lambda: host.socket.exists() and host.token_file.exists(), "socket and token", seconds=10)
    eventually(lambda: host.is_ready(host.agent), "a ready agent")
    assert_works(host)


@case("E")
def state_directory(scene: Scene) -> None:
    """The state directory is removed. It comes back with all that the agent knows, and containers get NICs."""
    host = scene.host(max_nics=2)
    container = host.container()
    host.add(container)
    shutil.rmtree(host.state_dir)
    eventually((host.state_dir / "agent.db").exists, "the state file", seconds=10)
    assert_works(host)
    host.agent.stop()
    host.start(min_idle=1, max_idle=1, max_nics=2, duplicate_probe="false")
    assert [found["container_id"] for found in host.attachments()] == [container.name]


@case("E")
def parking_namespace(scene: Scene) -> None:
    """The parking namespace is unmounted. It comes back with its NICs, and outlives a restart."""
    host = scene.host()
    (nic,) = host.nics("idle")
    before = host.parking.stat().st_ino
    run("umount", "--lazy", str(host.parking))
    host.parking.unlink()
    eventually(lambda: host.parking.exists() and host.parking.stat().st_ino == before, "the mount", seconds=10)
    assert_works(host)
    host.agent.stop()
    host.start(min_idle=1, max_idle=1, max_nics=1, duplicate_probe="false")
    assert [found["nic_id"] for found in host.nics()] == [nic["nic_id"]]
    assert_works(host)


@case("E")
def state_under_load(scene: Scene) -> None:
    """The state directory is removed again and again while containers come and go. None is lost, none keeps a NIC."""
    host = scene.host(max_nics=4)
    over = threading.Event()

    def remove() -> None:
        while not over.wait(0.7):
            shutil.rmtree(host.state_dir, ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            failed = [
                str(answer) for answers in pool.map(lambda _: come_and_go(host), range(3)) for answer in answers
            ]
    finally:
        over.set()
        remover.join()
    assert not failed, failed
    eventually(lambda: not host.attachments(), "no attachment")
    eventually((host.state_dir / "agent.db").exists, "the state file", seconds=10)
    assert_works(host)


def come_and_go(host: Host) -> list[Answer]:
    """ADD and DEL several times: answers that are neither success nor "try again later"."""
    answers = []
    for _ in range(8):
        container = host.container()
        answers.append(host.cni("ADD", container))
        answers.append(host.cni("DEL", container))
    return [answer for answer in answers if answer.code not in (0, 11)]
