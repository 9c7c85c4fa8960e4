"""go-cni, the library between libcni and containerd or Nomad: what it asks, and what it makes of the answers."""

import ipaddress
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cni.libcni import Call, Libcni
from cni.networks import Failed, Network, parse
from cni.results import VERSIONS, convert

LOOPBACK = b'{"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}'
TAKEN_FOR_SUCCESS = "not found"  # in the error of a DEL


@dataclass(frozen=True)
class Interface:
    """go-cni's result for one name, of any network."""

    mac: str = ""
    sandbox: str = ""
    addresses: tuple[str, ...] = ()


@dataclass
class GoCni:
    """Networks of one runtime, each with its interface name; all are asked for every container."""

    library: Libcni
    networks: Sequence[tuple[str, Network]]

    @classmethod
    def with_loopback(cls, library: Libcni, *networks: Network) -> "GoCni":
        """As containerd has it."""
        named = [(f"eth{n}", network) for n, network in enumerate(networks)]
        return cls(library, [("lo", parse(LOOPBACK)), *named])

    def setup(self, call: Call) -> dict[str, Interface]:
        """ADD of all networks at once; all are awaited, and the first error is raised."""
        with ThreadPoolExecutor(len(self.networks)) as pool:
            adds = [pool.submit(self.library.add, network, _named(call, ifname)) for ifname, network in self.networks]
        return interfaces([add.result() for add in adds])

    def remove(self, call: Call) -> None:
        """DEL of the networks in turn. Some words of a failed one make it a success, and it is never repeated."""
        for ifname, network in self.networks:
            try:
                self.library.delete(network, _named(call, ifname))
            except Failed as err:
                is_gone = not call.netns and "no such file or directory" in str(err)
                if not is_gone and TAKEN_FOR_SUCCESS not in str(err):
                    raise

    def check(self, call: Call) -> None:
        for ifname, network in self.networks:
            self.library.check(network, _named(call, ifname))

    def status(self) -> None:
        for _, network in self.networks:
            self.library.status(network)


def interfaces(results: Sequence[Mapping[str, Any]]) -> dict[str, Interface]:
    """By name, later ones over earlier ones; an index outside the list ends the runtime itself."""
    found = {"eth0": Interface()}
    for result in (convert(result, VERSIONS[-1]) for result in results):
        listed = result.get("interfaces", [])
        found |= {each["name"]: Interface(each.get("mac", ""), each.get("sandbox", "")) for each in listed}
        for ip in result.get("ips", []):
            assert 0 <= ip.get("interface", 0) < max(len(listed), 1), f"go-cni panics: {result}"
            name = listed[ip["interface"]]["name"] if "interface" in ip else "eth0"
            address = str(ipaddress.ip_interface(ip["address"]).ip)
            found[name] = Interface(found[name].mac, found[name].sandbox, (*found[name].addresses, address))
    return found


def _named(call: Call, ifname: str) -> Call:
    return Call(call.container_id, call.netns, ifname, call.args, call.capability_args)
