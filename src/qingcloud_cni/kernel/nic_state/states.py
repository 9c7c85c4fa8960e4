"""Describe, compare and restore the state of links in one namespace."""

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from qingcloud_cni.core.errors import LinkNotFound
from qingcloud_cni.core.seams.kernel import Program
from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit
from qingcloud_cni.kernel.netlink.messages import IFLA_MTU, LinkChange, LinkInfo, remove_xdp, set_link
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused
from qingcloud_cni.kernel.nic_state import bpf, ethtool
from qingcloud_cni.kernel.nic_state.description import (
    Description,
    attributes_of,
    link_differences,
    restoring_change,
)
from qingcloud_cni.kernel.nic_state.sysfs import THREADED, WRITTEN_ALWAYS, Sysfs
from qingcloud_cni.kernel.nic_state.uppers import above, delete_above


@dataclass(frozen=True, slots=True)
class Settled:
    """A link after its restoration."""

    link: LinkInfo
    described: Description | None  # as the cloud plugged it in
    soil: str  # what could not be restored, "" if nothing

    def text(self, before: str) -> str:
        """The description for the NIC's row, where *before* stands."""
        return before if Description.parse(before) is not None else str(self.described or "")


@dataclass(frozen=True, slots=True)
class State:
    """How a link differs from its description, for people, and the programs on it."""

    differences: tuple[str, ...]
    programs: tuple[Program, ...]


Inside = Callable[[], AbstractContextManager[None]]


class LinkStates(ClosesOnExit):
    """The links of the namespace of *netlink*; *inside* puts the thread into it for a block."""

    def __init__(self, netlink: Netlink, inside: Inside) -> None:
        self._netlink = netlink
        self._inside = inside
        self._sysfs: Sysfs | None = None
        self._has_bpf = False
        self.lacks: tuple[str, ...] = ()  # abilities that this kernel or the service's rights lack
        with ExitStack() as undo, inside():
            try:
                bpf.has_tcx(1)  # of lo
                self._has_bpf = True
            except OSError as err:
                self.lacks += (f"bpf(2): {err.strerror}: TCX programs that containers leave on NICs stay unseen",)
            try:
                self._sysfs = undo.enter_context(Sysfs.mount())
            except OSError as err:
                self.lacks += (f"sysfs: mount failed: {err.strerror}: RPS, XPS and NAPI settings are not restored",)
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def describe(self, link: LinkInfo) -> Description:
        with _refused(f"nic {link.mac}: describe {link.name}"):
            sysfs = self._sysfs.settings(link.name) if self._sysfs else {}
            features = ethtool.wanted_features(self._netlink, link.name)
            return Description(attributes_of(link), features, ethtool.settings(self._netlink, link.name), sysfs)

    def arrive(self, link: LinkInfo, plugged: str) -> Settled:
        """Restore a link and describe it if *plugged* does not."""
        described = Description.parse(plugged)
        settled = self.settle(link, described)
        if described is None:
            return replace(settled, described=self.describe(settled.link))
        return settled

    def settle(self, link: LinkInfo, plugged: Description | None, *, is_thorough: bool = False) -> Settled:
        """Compare a link with *plugged*, restore what differs, and tell what could not be restored.

        Without *is_thorough* it reads only what costs an ADD nothing to speak of.
        """
        if is_thorough and plugged is not None:
            self._rewrite(link, plugged)
        if soil := tuple(self.differences(link, plugged, is_thorough=is_thorough)):
            self._restore(link, plugged, is_thorough=is_thorough)
            link = self._again(link)
            soil = tuple(self.differences(link, plugged, is_thorough=is_thorough))
        return Settled(link, plugged, "; ".join(soil))

    def differences(self, link: LinkInfo, plugged: Description | None, *, is_thorough: bool = False) -> Iterator[str]:
        """What is not as plugged; without a description only what no plugged NIC has."""
        yield from link_differences(link, plugged)
        with _refused(f"nic {link.mac}: compare {link.name}"):
            yield from (f"TCX program {program}" for program in self.tcx_programs(link))
            if plugged is None:
                return
            now = Description(features=ethtool.wanted_features(self._netlink, link.name))
            yield from plugged.differences(now)
            if is_thorough:
                sysfs = self._sysfs.settings(link.name) if self._sysfs else {}
                now = Description(ethtool=ethtool.settings(self._netlink, link.name), sysfs=sysfs)
                yield from plugged.differences(now)

    def tcx_programs(self, link: LinkInfo) -> tuple[int, ...]:
        if not self._has_bpf:
            return ()
        with self._inside():
            return bpf.tcx_programs(link.ifindex)

    def inspect(self, link: LinkInfo, plugged: Description | None) -> State:
        """Read the state of a link without a change; *plugged* is what it should be."""
        found = [*self.differences(link, plugged, is_thorough=True)]
        found += (f"{upper.kind} {upper.name} above it" for upper in above(self._netlink, link))
        return State(tuple(found), tuple(self._programs(link)))

    def _programs(self, link: LinkInfo) -> Iterator[Program]:
        found = [("XDP", xdp.program) for xdp in link.xdp] + [("TCX", number) for number in self.tcx_programs(link)]
        for hook, number in found:
            with suppress(OSError):  # it was detached meanwhile, or bpf(2) is refused
                yield Program(hook, number, bpf.loaded_at(number))

    def _again(self, link: LinkInfo) -> LinkInfo:
        found = self._netlink.link(ifindex=link.ifindex)
        if found is None:
            raise LinkNotFound(f"nic {link.mac}: compare {link.name} failed: it vanished")
        return found

    def _rewrite(self, link: LinkInfo, plugged: Description) -> None:
        for file in WRITTEN_ALWAYS:
            if self._sysfs and file in plugged.sysfs:
                with suppress(OSError):
                    self._sysfs.restore(link.name, file, plugged.sysfs[file])

    def _restore(self, link: LinkInfo, plugged: Description | None, *, is_thorough: bool) -> None:
        """Set back whatever the kernel lets us; what it does not is in the next comparison."""
        strip_xdp(self._netlink, link, f"link {link.name}")
        with suppress(OSError), self._inside():
            bpf.detach_tcx(link.ifindex)
        if plugged is not None:
            if is_thorough and self._sysfs:
                self._restore_threaded(self._sysfs, link, plugged)
            self._restore_settings(link, plugged, is_thorough=is_thorough)
        for change in _changes(link, plugged):
            with suppress(NetlinkRefused):
                self._netlink.do(set_link(link.ifindex, change), f"restore {link.name}")

    def _restore_settings(self, link: LinkInfo, plugged: Description, *, is_thorough: bool) -> None:
        if is_thorough:
            now = ethtool.settings(self._netlink, link.name)
            for key in plugged.ethtool.keys() & now.keys():  # first, as queues come and go with the channels
                if now[key] != plugged.ethtool[key]:
                    with suppress(OSError):
                        ethtool.restore_setting(self._netlink, link.name, key, plugged.ethtool[key])
        if plugged.features:
            with suppress(OSError, ValueError):
                ethtool.restore_features(self._netlink, link.name, plugged.features)
        if is_thorough and self._sysfs:
            with suppress(OSError):
                now = self._sysfs.settings(link.name)
                for file in (f for f in plugged.sysfs if now.get(f) != plugged.sysfs[f]):
                    with suppress(OSError):
                        self._sysfs.restore(link.name, file, plugged.sysfs[file])

    def _restore_threaded(self, sysfs: Sysfs, link: LinkInfo, plugged: Description) -> None:
        """Before the offloads: a link that has no NAPI now, as a veth without GRO, is up with GRO for the moment."""
        value = plugged.sysfs.get(THREADED)
        with suppress(OSError, NetlinkRefused):
            if value is None or sysfs.settings(link.name).get(THREADED) in (None, value):
                return
            with suppress(OSError):
                sysfs.restore(link.name, THREADED, value)
                return
            ethtool.switch_gro_on(self._netlink, link.name)
            self._netlink.do(set_link(link.ifindex, LinkChange(is_up=True)), f"set up {link.name}")
            try:
                sysfs.restore(link.name, THREADED, value)
            finally:
                was = LinkChange(is_up=link.is_up)
                self._netlink.do(set_link(link.ifindex, was), f"set {link.name} back")


def strip(netlink: Netlink, link: LinkInfo, nic: str) -> None:
    """Delete what hangs on a link before it moves: links above it, which nothing shows later, and XDP programs."""
    delete_above(netlink, link, nic)
    strip_xdp(netlink, link, nic)


def strip_xdp(netlink: Netlink, link: LinkInfo, nic: str) -> None:
    """Remove XDP programs, as far as the kernel lets us: a later comparison has the rest."""
    for xdp in link.xdp:
        try:
            netlink.do(remove_xdp(link.ifindex, xdp.mode), f"{nic}: remove XDP program {xdp.program}")
        except NetlinkRefused as err:
            if err.errno == errno.EBUSY:  # a bpf_link holds it
                with suppress(OSError):
                    bpf.detach_xdp_link(link.ifindex, xdp.program)


def _changes(link: LinkInfo, plugged: Description | None) -> Iterator[LinkChange]:
    """One for each attribute, so that one which the driver refuses does not stop the others."""
    change = restoring_change(link, plugged)
    if change.flag_mask:
        yield LinkChange(flags=change.flags, flag_mask=change.flag_mask)
    if plugged is not None and plugged.attributes.get(IFLA_MTU) != link.attributes.get(IFLA_MTU):
        yield LinkChange(mtu=plugged.mtu)
    yield from (LinkChange(attributes=(attribute,)) for attribute in change.attributes)


@contextmanager
def _refused(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno == errno.ENODEV:
            raise LinkNotFound(f"{action} failed: it vanished") from err
        raise NetlinkRefused(action, err.errno or errno.EIO) from err
