"""Which files are a container's namespace; the parking namespace is made, found, repaired and removed."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from machines.nics import NETNS_DIR, Lab, fd_count, ip, kernel, lab
from qingcloud_cni.core.errors import AbilityMissing, InvalidNetns, KernelRefused
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.namespaces import namespaces
from qingcloud_cni.kernel.namespaces.namespaces import (
    OWN,
    RETURN_PAUSES,
    Namespace,
    NamespaceReturnFailed,
    NetnsSwitcher,
    enter,
    find,
    reachable,
)

__all__ = ["kernel", "lab"]  # fixtures

OPEN_ONE = """
import asyncio, sys
from pathlib import Path
from qingcloud_cni.core.errors import AbilityMissing
from qingcloud_cni.kernel import HostKernel
try:
    asyncio.run(HostKernel.open("i-unfit", netns_dir=Path(sys.argv[1])))
except AbilityMissing as err:
    print(err)
"""


def in_thread(work: threading.Thread) -> None:
    work.start()
    work.join()


# --- namespaces --------------------------------------------------------------------------------------


async def test_namespace_is_known_by_device_and_inode(lab: Lab, kernel: HostKernel) -> None:
    """Whichever path leads to it: the mounted file, a link to it, or a process in it."""
    path = lab.path(lab.make_netns("pod"))
    netns = await kernel.identify(path)
    info = Path(path).stat()
    assert (netns.path, netns.dev, netns.inode) == (path, info.st_dev, info.st_ino)
    with subprocess.Popen(
        ("nsenter", f"--net={path}", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.read(1)  # so it has entered
        by_pid = await kernel.identify(f"/proc/{process.pid}/ns/net")
        process.stdin.close()
    assert (by_pid.dev, by_pid.inode) == (netns.dev, netns.inode)


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "fifo", "below a file", "nul", "mount namespace"])
async def test_what_is_no_namespace_is_refused(kernel: HostKernel, tmp_path: Path, kind: str) -> None:
    """Without waiting for the other end of a FIFO."""
    path = str(tmp_path / "netns")
    match kind:
        case "file":
            Path(path).touch()
        case "folder":
            Path(path).mkdir()
        case "fifo":
            os.mkfifo(path)
        case "below a file":
            (tmp_path / "file").touch()
            path = str(tmp_path / "file" / "netns")
        case "nul":
            path += "\0"
        case "mount namespace":
            path = "/proc/self/ns/mnt"
    before = fd_count()
    with pytest.raises(InvalidNetns, match=r"^netns "):
        await kernel.identify(path)
    assert fd_count() == before


async def test_hosts_and_parking_namespaces_are_refused(lab: Lab, kernel: HostKernel) -> None:
    for name in (lab.host, lab.parking):
        with pytest.raises(InvalidNetns, match="belongs to the host"):
            await kernel.identify(lab.path(name))


async def test_host_is_where_the_caller_is(lab: Lab) -> None:
    """Unless another namespace is named."""
    opened = await HostKernel.open(lab.instance_id)
    try:
        with pytest.raises(InvalidNetns, match="belongs to the host"):
            await opened.identify("/proc/self/ns/net")
        assert (await opened.identify(lab.path(lab.host))).path == lab.path(lab.host)
    finally:
        await opened.close()


def test_every_namespace_is_reached_once(lab: Lab) -> None:
    identities = [identity for identity, _ in reachable(NETNS_DIR)]
    assert len(identities) == len(set(identities))
    with Namespace.open(lab.path(lab.host)) as host:
        assert host.identity in identities
        with find(host.identity, NETNS_DIR) or pytest.fail("not found") as found:
            assert found.identity == host.identity
    assert find((0, 1), NETNS_DIR) is None


def test_thread_returns_even_after_an_error(lab: Lab) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        with Namespace.open("/proc/thread-self/ns/net") as here:
            seen.append(here.identity)

    def travel() -> None:
        switcher = NetnsSwitcher()
        with Namespace.open(lab.path(lab.host)) as away:
            look()
            with suppress(ZeroDivisionError), switcher.inside(away):
                look()
                raise ZeroDivisionError
            look()
            seen.append(away.identity)
        switcher.close()

    in_thread(threading.Thread(target=travel))
    home, inside, back, away = seen
    assert (inside, back) == (away, home)
    assert home != away


def test_thread_that_cannot_return_is_never_used_again(lab: Lab) -> None:
    outcomes: list[bool] = []

    def travel() -> None:
        switcher = NetnsSwitcher()
        with Namespace.open(lab.path(lab.host)) as away, Path("/dev/null").open() as no_namespace:
            with pytest.raises(NamespaceReturnFailed, match="return to"), switcher.inside(away):
                os.dup2(no_namespace.fileno(), switcher.home.fd)
            with pytest.raises(NamespaceReturnFailed, match="earlier return"), switcher.inside(away):
                outcomes.append(False)
        switcher.close()
        outcomes.append(True)

    in_thread(threading.Thread(target=travel))
    assert outcomes == [True]


def test_a_return_that_meets_a_shortage_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accounts memory for setns, and may have none."""
    seen: list[tuple[int, int]] = []
    errors = [OSError(errno.ENOMEM, "setns")] * len(RETURN_PAUSES)

    def enter_at_last(namespace: Namespace) -> None:
        if errors and seen:
            raise errors.pop()
        enter(namespace)

    def travel() -> None:
        def look() -> None:
            with Namespace.open(OWN) as here:
                seen.append(here.identity)

        switcher = NetnsSwitcher()
        with Namespace.open(lab.path(lab.host)) as away:
            with switcher.inside(away):
                look()
            look()
            seen.extend((away.identity, switcher.home.identity))
        switcher.close()

    monkeypatch.setattr(namespaces, "enter", enter_at_last)
    in_thread(threading.Thread(target=travel))
    inside, back, away, home = seen
    assert (inside, back, errors) == (away, home, [])


# --- the parking namespace ---------------------------------------------------------------------------


@pytest.fixture
def netns_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "netns"
    yield folder
    while subprocess.run(("umount", "-R", folder), check=False, capture_output=True).returncode == 0:
        continue


async def test_parking_outlives_the_agent(lab: Lab) -> None:
    """`ip netns` lists it; whoever opens it next finds the same one, and the NICs in it."""
    inodes = set()
    mac = lab.plug()
    for _ in range(2):
        opened = await lab.open_kernel()
        inodes.add(Path(lab.path(lab.parking)).stat().st_ino)
        await opened.park(lab.record(mac))
        await opened.close()
        await opened.close()
    assert len(inodes) == 1
    assert lab.is_parked(mac)
    assert lab.parking in ip("netns", "list").split()


async def test_left_over_file_is_replaced(lab: Lab) -> None:
    Path(lab.path(lab.parking)).touch(mode=0)
    opened = await lab.open_kernel()
    assert lab.links(lab.parking) == {}
    await opened.close()


async def test_parking_is_removed(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    await kernel.remove()
    assert not Path(lab.path(lab.parking)).exists()
    assert lab.parking not in ip("netns", "list").split()


def unmount(path: Path) -> None:
    subprocess.run(("umount", "-l", path), check=True)


def mount_another(path: Path) -> None:
    """As `ip netns delete` and `ip netns add` of the same name."""
    ip("netns", "delete", path.name)
    ip("netns", "add", path.name)


def mount_another_above(path: Path) -> None:
    ip("netns", "add", f"{path.name}-other")
    subprocess.run(("mount", "--bind", path.with_name(f"{path.name}-other"), path), check=True)
    ip("netns", "delete", f"{path.name}-other")


@pytest.mark.parametrize(
    "remove",
    [unmount, lambda path: ip("netns", "delete", path.name), mount_another, mount_another_above],
    ids=["unmounted", "deleted", "replaced", "covered"],
)
async def test_a_mount_that_was_removed_comes_back_with_its_nics(
    lab: Lab, kernel: HostKernel, remove: Callable[[Path], object]
) -> None:
    """The next agent finds the same namespace, and attach and park work meanwhile."""
    first, second = lab.plug(1), lab.plug(2)
    await kernel.park(lab.record(first))
    path = Path(lab.path(lab.parking))
    inode = path.stat().st_ino
    assert await kernel.restore_parking() is None
    remove(path)
    await kernel.park(lab.record(second))
    assert await kernel.restore_parking() == str(path)
    assert path.stat().st_ino == inode
    assert lab.is_parked(first)
    assert lab.is_parked(second)
    assert await kernel.restore_parking() is None
    await kernel.close()
    again = await lab.open_kernel()
    assert {link.mac for link in (await again.survey()).parked} == {first, second}
    await again.close()


@pytest.mark.parametrize("others", ["link to another", "link to itself", "dangling link", "directory"])
async def test_nothing_is_mounted_on_a_link_or_a_directory(lab: Lab, kernel: HostKernel, others: str) -> None:
    path = Path(lab.path(lab.parking))
    targets = {"link to another": lab.path(lab.host), "dangling link": f"{path}-gone", "link to itself": f"{path}-b"}
    if others == "link to itself":
        Path(targets[others]).touch()
        subprocess.run(("mount", "--bind", path, targets[others]), check=True)
    ip("netns", "delete", path.name)
    path.mkdir() if others == "directory" else path.symlink_to(targets[others])
    try:
        with pytest.raises(KernelRefused, match=f"parking namespace {path}: mount failed: something else is there"):
            await kernel.restore_parking()
    finally:
        path.rmdir() if others == "directory" else path.unlink()
        if others == "link to itself":
            ip("netns", "delete", f"{path.name}-b")
    assert await kernel.restore_parking() == str(path)


async def test_the_folder_comes_back_as_well(lab: Lab, netns_dir: Path) -> None:
    opened = await lab.open_kernel(netns_dir=netns_dir)
    subprocess.run(("umount", "-l", "-R", netns_dir), check=True)
    shutil.rmtree(netns_dir)
    path = netns_dir / lab.parking
    assert await opened.restore_parking() == str(path)
    inode = path.stat().st_ino
    await opened.close()
    again = await lab.open_kernel(netns_dir=netns_dir)
    assert path.stat().st_ino == inode
    await again.remove()


async def test_folder_may_be_elsewhere(lab: Lab, netns_dir: Path) -> None:
    """It is made, and shared, so that processes with a mount namespace of their own see what is mounted in it."""
    before = os.umask(0o077)
    try:
        opened = await lab.open_kernel(netns_dir=netns_dir)
    finally:
        os.umask(before)
    assert netns_dir.stat().st_mode & 0o777 == 0o755
    again = await lab.open_kernel(f"{lab.instance_id}b", netns_dir=netns_dir)
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    (folder,) = (mount for mount in mounts if mount[4] == str(netns_dir))
    assert any(option.startswith("shared:") for option in folder)
    assert sum(mount[4].startswith(f"{netns_dir}/") and "nsfs" in mount for mount in mounts) == 2
    await again.remove()
    await opened.remove()
    assert list(netns_dir.iterdir()) == []


async def test_nothing_is_left_open(lab: Lab) -> None:
    before = fd_count(), threading.active_count()
    for _ in range(3):
        await (await lab.open_kernel()).close()
        with pytest.raises(AbilityMissing, match="host's network namespace"):
            await HostKernel.open(lab.instance_id, host_netns="/nowhere")
    assert (fd_count(), threading.active_count()) == before


@pytest.mark.usefixtures("lab")  # root is needed to have something to lose
@pytest.mark.parametrize("lost", ["-all", "-sys_admin", "-net_admin"])
def test_missing_right_is_said_in_a_sentence(netns_dir: Path, lost: str) -> None:
    command = (
        "setpriv",
        f"--bounding-set={lost}",
        f"--inh-caps={lost}",
        sys.executable,
        "-c",
        OPEN_ONE,
        str(netns_dir),
    )
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.endswith("; run as root\n")
    assert done.stdout.count("\n") == 1
