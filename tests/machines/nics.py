"""A host of its own for each kernel test: namespaces and veth pairs that stand for containers and NICs."""

import fcntl
import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import Kernel, LinkOrder, NicRecord
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.namespaces.namespaces import Namespace, NetnsSwitcher, enter
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink

NETNS_DIR = Path("/run/netns")
SIOCGSKNS = 0x894C  # a descriptor of a socket's network namespace
ADDRESS = "172.16.3.7/24"
ROUTES = (Route("0.0.0.0/0", "172.16.3.1"), Route("10.96.0.0/12", "172.16.3.254"))


def need_root() -> None:
    """Fail with one sentence where these tests cannot run; they are never skipped."""
    if os.geteuid() != 0:
        pytest.fail("the kernel tests make network namespaces: run them as root", pytrace=False)


def ip(*args: str) -> str:
    done = subprocess.run(("ip", *args), check=False, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def ip_json(*args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-j", "-d", *args) or "[]")
    return [item for item in found if item]  # what a filter leaves out is shown as {}


def flood_altnames(netns: str, link: str) -> None:
    """Give a link as many altnames as the kernel takes: its description is longer than 64 KiB."""
    adds = "".join(f"link property add dev {link} altname n{number:0126}\n" for number in range(600))
    subprocess.run(
        ("ip", "-n", netns, "-force", "-batch", "-"), input=adds.encode(), capture_output=True, check=False
    )


def refusing(monkeypatch: pytest.MonkeyPatch, path: str, step: str) -> None:
    """Let the namespace at *path* refuse: to be entered, or to list its links."""
    with Namespace.open(path) as namespace:
        refused = namespace.identity
    inside, links = NetnsSwitcher.inside, Netlink.links

    def enter_or_refuse(self: NetnsSwitcher, namespace: Namespace) -> AbstractContextManager[None]:
        if namespace.identity == refused:
            raise KernelRefused("netns: enter failed: Operation not permitted")
        return inside(self, namespace)

    def list_or_refuse(self: Netlink) -> tuple[LinkInfo, ...]:
        fd = fcntl.ioctl(self, SIOCGSKNS)
        with Namespace(fd) as namespace:
            if namespace.identity == refused:
                raise KernelRefused("list links failed: changes interrupted it")
        return links(self)

    if step == "enter":
        monkeypatch.setattr(NetnsSwitcher, "inside", enter_or_refuse)
    else:
        monkeypatch.setattr(Netlink, "links", list_or_refuse)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for *condition*, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def fd_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Lab:
    """Namespaces with names of their own: a host, a vxnet into which the other ends of all NICs lead, containers."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self.instance_id = f"i-lab{self.tag}"
        self.parking = f"qingcni-{self.instance_id}"
        self.names: list[str] = []
        self.alias = f"mynet/{secrets.token_hex(16)}/eth0"  # tells a NIC among all namespaces of the machine
        self.host = self.make_netns("host")
        self.vxnet = self.make_netns("vxnet")

    def make_netns(self, role: str) -> str:
        name = f"lab{self.tag}-{role}"
        ip("netns", "add", name)
        self.names.append(name)
        return name

    def path(self, name: str) -> str:
        return f"{NETNS_DIR}/{name}"

    def plug(self, number: int = 1, name: str = "", netns: str = "", mtu: int = 1500) -> str:
        """Make a NIC appear on the host, up, and give its MAC; its other end is ``p<number>`` in the vxnet."""
        mac = f"52:54:{bytes.fromhex(self.tag).hex(':')}:{number:02x}"
        peer = ("peer", "name", f"p{number}", "netns", self.vxnet, "mtu", str(mtu))
        link = ("link", "add", name or f"eth{number}", "address", mac, "mtu", str(mtu), "type", "veth")
        ip("-n", netns or self.host, *link, *peer)
        ip("-n", self.vxnet, "link", "set", f"p{number}", "up")
        ip("-n", netns or self.host, "link", "set", name or f"eth{number}", "up")
        return mac

    def links(self, netns: str) -> dict[str, dict[str, Any]]:
        """Links of *netns* as ``ip`` shows them, by name, without lo."""
        return {link["ifname"]: link for link in ip_json("-n", netns, "link") if link["ifname"] != "lo"}

    def is_parked(self, mac: str) -> bool:
        """Whether ip sees the NIC parked: named for it, down, without alias, with its own MAC."""
        link = self.links(self.parking).get("q" + mac.replace(":", ""), {})
        clean = link.get("address") == mac and "UP" not in link["flags"] and "ifalias" not in link
        return clean and "altnames" not in link and not ip_json("-n", self.parking, "-4", "addr", "show", "up")

    def order(self, mac: str, netns: Netns, ifname: str = "eth0", routes: tuple[Route, ...] = ROUTES) -> LinkOrder:
        return LinkOrder(self.record(mac), netns, ifname, ADDRESS, routes)

    def record(self, mac: str) -> NicRecord:
        """What is recorded about the NIC: its alias, and its fingerprint by the port in the vxnet."""
        (port,) = [link for name, link in self.links(self.vxnet).items() if name == f"p{int(mac[-2:], 16)}"] or [{}]
        inode = Path(self.path(self.vxnet)).stat().st_ino
        return NicRecord(mac, self.alias, f"veth {inode}/{port['ifindex']}" if port else "")

    def open_kernel(self, instance_id: str = "", **options: Any) -> Coroutine[None, None, HostKernel]:
        """A kernel on this host, as an agent with this vxnet's router opens it."""
        return HostKernel.open(
            instance_id or self.instance_id,
            **{"host_netns": self.path(self.host), "routers": [self.path(self.vxnet)]} | options,
        )

    def close(self) -> None:
        for name in (*reversed(self.names), self.parking):
            with suppress(AssertionError):  # a test may have removed it
                ip("netns", "del", name)


def within(lab: Lab, netns: str, read: Callable[[], Any]) -> Any:
    """What *read* gives in a thread of its own in *netns*."""
    results = []

    def run() -> None:
        with Namespace.open(lab.path(netns)) as namespace:
            enter(namespace)
        results.append(read())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture
def lab() -> Iterator[Lab]:
    need_root()
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
async def kernel(lab: Lab) -> AsyncIterator[HostKernel]:
    opened = await lab.open_kernel()
    _: Kernel = opened  # mypy compares them
    try:
        yield opened
    finally:
        await opened.close()
