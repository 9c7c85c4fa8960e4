"""Gateways of this host: the NICs that take pods' packets to Services, and the kernel's configuration for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from qingcloud_cni.core.nics.model import NO_GATEWAY, Attachment, Nic, NicState
from qingcloud_cni.core.seams.cloud import CloudNic
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath

LAST_INDEX = 62  # one per NIC an instance can have beside its primary one
ADOPTED_INDEX = 63  # and above: the host's own NICs, used unchanged; they need no mark or table


@dataclass(frozen=True, slots=True)
class HostNic:
    """A NIC of the host's own, up and with its cloud address: the agent may adopt it as a gateway, unchanged."""

    nic_id: str
    vxnet_id: str
    address: str  # "172.20.1.4/24"
    router: str
    enable_aspoof: int | None  # 1: the cloud drops packets from Service addresses; None: it does not say


def host_nics(
    nics: Iterable[CloudNic], addresses: dict[str, tuple[str, ...]], routers: dict[str, str]
) -> tuple[HostNic, ...]:
    """Return those of *nics* up on the host with their cloud address; *addresses* are by MAC, *routers* by vxnet."""
    found = []
    for nic in nics:
        address = next((a for a in addresses.get(nic.nic_id, ()) if a.partition("/")[0] == nic.private_ip), "")
        if address and nic.vxnet_id in routers:
            found.append(HostNic(nic.nic_id, nic.vxnet_id, address, routers[nic.vxnet_id], nic.enable_aspoof))
    return tuple(found)


def link_name(prefix: str, index: int) -> str:
    """Name a gateway's link: *prefix* for the first, then *prefix*1, *prefix*2 and so on; at most 15 bytes.

    A prefix of 14 or 15 characters is cut to 12 for all but the first, and followed by "_", which the setting
    `gatewayns` cannot contain: names differ whatever the prefix ends with.
    """
    if not index:
        return prefix
    return f"{prefix}{index}" if len(prefix) <= 13 else f"{prefix[:12]}_{index}"


def index_of(prefix: str, name: str) -> int:
    """Return the index of the gateway whose link has this name, or NO_GATEWAY."""
    return next((i for i in range(LAST_INDEX + 1) if link_name(prefix, i) == name), NO_GATEWAY)


def free_index(nics: Iterable[Nic]) -> int:
    """Return the lowest index that no gateway of *nics* has."""
    taken = {n.gateway_index for n in nics}
    return next(i for i in range(LAST_INDEX + 1) if i not in taken)


def users(gateway_address: str, attachments: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the attachments that reach Services through this gateway."""
    return tuple(a for a in attachments if a.services and any(r.gw == gateway_address for r in a.routes))


def unused(nics: Iterable[Nic], attachments: Sequence[Attachment]) -> frozenset[str]:
    """Return the gateway NICs that no attachment uses."""
    return frozenset(n.nic_id for n in nics if n.is_gateway and not users(n.host_address, attachments))


def service_path(
    nics: Sequence[Nic], attachments: Sequence[Attachment], adopted: Sequence[HostNic], prefix: str
) -> ServicePath:
    """Return the host's target: every gateway NIC of ours, those of the host's own that containers use, and ipMasq.

    A container's vxnet is masqueraded without Services as well: a hostPort translates packets of other hosts, and the
    cloud's anti-spoofing drops what leaves this host with their addresses.
    """
    own = sorted((n for n in nics if n.state is NicState.GATEWAY), key=lambda n: n.gateway_index)
    gateways = [
        Gateway(n.nic_id, link_name(prefix, n.gateway_index), n.address, n.gateway, n.gateway_index) for n in own
    ]
    serving = [h for h in adopted if users(h.address.partition("/")[0], attachments)]
    gateways += [Gateway(h.nic_id, "", h.address, h.router, ADOPTED_INDEX + n) for n, h in enumerate(serving)]
    asking = {a.nic_id: a for a in attachments if a.ip_masq}
    addresses = {n.vxnet_id: n.address for n in nics if n.nic_id in asking}  # one of each vxnet
    masquerade = {str(IPv4Interface(address).network) for address in addresses.values()}
    services = {service for a in asking.values() for service in a.services}
    return ServicePath(tuple(gateways), tuple(sorted(masquerade)), tuple(sorted(services)))
