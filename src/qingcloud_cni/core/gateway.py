"""Gateways of this host: which NIC takes pods' packets to Services, and what the kernel must do for it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from qingcloud_cni.core.nics.model import NO_GATEWAY, Attachment, Nic, NicState
from qingcloud_cni.core.seams.cloud import CloudNic
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath

LAST_INDEX = 62  # one per NIC an instance can have beside its primary one
ADOPTED_INDEX = 63  # from here on: NICs that were there already and are used as they are; they need no mark or table


@dataclass(frozen=True, slots=True)
class HostNic:
    """A NIC of the host that is not ours to change, up and with its cloud address: it may serve as a gateway."""

    nic_id: str
    vxnet_id: str
    address: str  # "172.20.1.4/24"
    router: str
    enable_aspoof: int | None  # 1 drops what a gateway sends in the name of Services; None: the cloud does not tell


def host_nics(
    nics: Iterable[CloudNic], addresses: dict[str, tuple[str, ...]], routers: dict[str, str]
) -> tuple[HostNic, ...]:
    """Those of *nics* whose link is up on the host with the very address the cloud gave it.

    *addresses* are the host's by MAC, *routers* those of vxnets by id.
    """
    found = []
    for nic in nics:
        address = next((a for a in addresses.get(nic.nic_id, ()) if a.partition("/")[0] == nic.private_ip), "")
        if address and nic.vxnet_id in routers:
            found.append(HostNic(nic.nic_id, nic.vxnet_id, address, routers[nic.vxnet_id], nic.enable_aspoof))
    return tuple(found)


def link_name(prefix: str, index: int) -> str:
    """The first gateway's link is named *prefix*, further ones *prefix*1, *prefix*2 …; at most 15 bytes."""
    number = str(index) if index else ""
    return prefix[: 15 - len(number)] + number


def index_of(prefix: str, name: str) -> int:
    """The index of the gateway whose link has this name; NO_GATEWAY if it is no gateway's."""
    return next((i for i in range(LAST_INDEX + 1) if link_name(prefix, i) == name), NO_GATEWAY)


def free_index(nics: Iterable[Nic]) -> int:
    """The lowest index no gateway of *nics* has."""
    taken = {n.gateway_index for n in nics}
    return next(i for i in range(LAST_INDEX + 1) if i not in taken)


def address_of(nic: Nic) -> str:
    return str(IPv4Interface(nic.address).ip)


def users(gateway_address: str, attachments: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """The attachments that reach Services through this gateway."""
    return tuple(a for a in attachments if a.services and any(r.gw == gateway_address for r in a.routes))


def unused(nics: Iterable[Nic], attachments: Sequence[Attachment]) -> frozenset[str]:
    """Gateway NICs that no attachment uses."""
    return frozenset(n.nic_id for n in nics if n.is_gateway and not users(address_of(n), attachments))


def service_path(
    nics: Iterable[Nic], attachments: Sequence[Attachment], adopted: Sequence[HostNic], prefix: str
) -> ServicePath:
    """What the host has to be: every gateway NIC of ours serves, and those of the host's own that containers use."""
    own = sorted((n for n in nics if n.state is NicState.GATEWAY), key=lambda n: n.gateway_index)
    gateways = [
        Gateway(n.nic_id, link_name(prefix, n.gateway_index), n.address, n.gateway, n.gateway_index) for n in own
    ]
    serving = [h for h in adopted if users(h.address.partition("/")[0], attachments)]
    gateways += [Gateway(h.nic_id, "", h.address, h.router, ADOPTED_INDEX + n) for n, h in enumerate(serving)]
    by_address = {g.address.partition("/")[0]: g for g in gateways}
    masquerade: set[str] = set()
    services: set[str] = set()
    for attachment in attachments:
        gateway = next((by_address[r.gw] for r in attachment.routes if r.gw in by_address), None)
        if gateway is not None and attachment.services and attachment.ip_masq:
            masquerade.add(str(IPv4Interface(gateway.address).network))
            services.update(attachment.services)
    return ServicePath(tuple(gateways), tuple(sorted(masquerade)), tuple(sorted(services)))
