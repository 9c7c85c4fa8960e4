"""Compare an attachment with what ADD left: for CHECK, and for a repeated ADD. Pure."""

from qingcloud_cni.core.cni.results import Result, route_details
from qingcloud_cni.core.nics.model import Attachment, Nic, NicState, Route
from qingcloud_cni.core.seams.kernel import Inspection


def mismatches(
    attachment: Attachment | None, nic: Nic | None, seen: Inspection, previous: Result, ifname: str
) -> tuple[str, ...]:
    """Describe every mismatch.

    Additions by others do not count: more addresses, routes and interfaces, a MAC that *previous* lists, our routes
    in another table, BPF programs.
    """
    if attachment is None or nic is None:
        return ("the agent has no such attachment",)
    if not attachment.is_ready or nic.state is not NicState.ASSIGNED:
        return ("the agent has not finished its ADD",)
    if not attachment.netns.is_same(seen.netns):
        return (f"CNI_NETNS {seen.netns.path} is not the namespace of its ADD ({attachment.netns.path})",)
    sandboxes = {seen.netns.path, attachment.netns.path}
    listed = [n for n, i in enumerate(previous.interfaces) if i.name == ifname and i.sandbox in sandboxes]
    found = [*_link_mismatches(nic, seen, {previous.interfaces[n].mac.lower() for n in listed}, ifname)]
    found += _inherited(attachment, seen, ifname)
    if not listed:
        found.append(f"prevResult lists no interface {ifname} in {seen.netns.path}")
    if not any(ip.address == nic.address and ip.interface in (None, *listed) for ip in previous.ips):
        found.append(f"prevResult does not list address {nic.address} of {ifname}")
    if seen.link is not None:
        routes = {(r.dst, r.gw) for r in previous.routes}
        listed_routes = (r for r in attachment.routes if (r.dst, r.gw) in routes)
        lost = [r for r in listed_routes if not any(_serves(s, r) for s in seen.routes)]
        found += [f"route to {_described(r)} is missing" for r in lost]
    return tuple(found)


def _serves(seen: Route, wanted: Route) -> bool:
    """Whether *seen*, of any table, is the installed route *wanted*, with the values that it asks for."""
    asked = ((getattr(seen, key), value) for key, value in route_details(wanted) if key != "table")
    return (seen.dst, seen.gw) == (wanted.dst, wanted.gw) and all((found or 0) == value for found, value in asked)


def _described(route: Route) -> str:
    parts = (f"{key} {value}" for key, value in route_details(route))
    return " ".join((route.dst, *((f"via {route.gw}",) if route.gw else ()), *parts))


def _link_mismatches(nic: Nic, seen: Inspection, macs: set[str], ifname: str) -> tuple[str, ...]:
    link = seen.link
    if link is None:
        return (f"interface {ifname} is missing in {seen.netns.path}",)
    found = []
    if link.mac not in macs | {nic.nic_id}:
        found.append(f"interface {ifname} has MAC {link.mac} instead of {nic.nic_id}")
    if not link.is_up:
        found.append(f"interface {ifname} is down")
    if seen.is_silent:
        found.append(f"interface {ifname} does not use ARP (NOARP)")
    if nic.address not in seen.addresses:
        found.append(f"address {nic.address} is missing on {ifname}")
    return tuple(found)


def _inherited(attachment: Attachment, seen: Inspection, ifname: str) -> tuple[str, ...]:
    """Describe programs that may have been on the NIC before its ADD, which did not compare the NIC's state."""
    if attachment.is_compared:
        return ()
    old = [program for program in seen.programs if program.loaded < attachment.uptime]
    return tuple(f"interface {ifname} has {p.hook} program {p.number}, which is older than its ADD" for p in old)
