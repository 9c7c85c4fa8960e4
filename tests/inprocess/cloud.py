"""The simulated cloud as a plain object, whose clock the test moves."""

import random
from typing import Any

from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.topology import Effect, HostSpec, RouterSpec, Topology, VxnetSpec

ROUTER = RouterSpec("rtr-1", "10.0.0.0/16")
VXNETS = (
    VxnetSpec("vxnet-h", "hosts", "10.0.0.0/24", "rtr-1"),
    VxnetSpec("vxnet-p", "pods", "10.0.1.0/24", "rtr-1"),
    VxnetSpec("vxnet-s", "small", "10.0.2.0/29", "rtr-1"),
    VxnetSpec("vxnet-l2", "plain", vxnet_type=0),
    VxnetSpec("vxnet-0", "base", "10.9.0.0/24", vxnet_type=2),
)
HOSTS = (HostSpec("host1", "vxnet-h", "i-1"), HostSpec("host2", "vxnet-h", "i-2"))


class Cloud:
    """A model with a clock that `wait` moves."""

    def __init__(self, seed: int = 1, **changes: Any) -> None:
        self.time = 1_704_164_645.0  # 2024-01-02T03:04:05Z
        parts: dict[str, Any] = {"routers": (ROUTER,), "vxnets": VXNETS, "hosts": HOSTS, **changes}
        self.model = Model(Topology(**parts), rng=random.Random(seed), now=lambda: self.time)
        self.hardware: list[Effect] = []

    def __call__(self, action: str, **params: Any) -> dict[str, Any]:
        wire = {"action": action, "zone": "pek3a"}
        for name, value in params.items():
            if isinstance(value, list | tuple):
                wire |= {f"{name}.{n}": str(item) for n, item in enumerate(value, 1)}
            else:
                wire[name] = str(value)
        return self.model.call(wire)

    def wait(self, seconds: float = 60.0) -> None:
        """Let time pass; jobs end when they are due."""
        end = self.time + seconds
        while (due := self.model.next_due()) is not None and due <= end:
            self.time = max(self.time, due)
            self.model.advance()
            self.hardware += self.model.take_effects()
        self.time = end
        self.hardware += self.model.take_effects()

    def create(self, count: int = 1, vxnet: str = "vxnet-p", **params: Any) -> list[str]:
        reply = self("CreateNics", vxnet=vxnet, count=count, **params)
        assert reply["ret_code"] == 0, reply
        return [nic["nic_id"] for nic in reply["nics"]]

    def attached(self, count: int = 1, instance: str = "i-1", vxnet: str = "vxnet-p") -> list[str]:
        nics = self.create(count, vxnet)
        assert self("AttachNics", nics=nics, instance=instance)["ret_code"] == 0
        self.wait()
        return nics

    def nic(self, nic_id: str) -> dict[str, Any]:
        (nic,) = self("DescribeNics", nics=[nic_id])["nic_set"]
        assert isinstance(nic, dict)
        return nic

    def primary(self, instance: str = "i-1") -> str:
        (found,) = (n for n in self("DescribeNics", instances=[instance])["nic_set"] if n["role"] == 1)
        return str(found["nic_id"])


def assert_refused(reply: dict[str, Any], code: int, name: str) -> None:
    assert reply.keys() == {"ret_code", "message"}
    assert reply["ret_code"] == code, reply
    assert reply["message"].startswith(f"{name}, ")
