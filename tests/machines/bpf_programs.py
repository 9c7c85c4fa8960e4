"""BPF programs that do nothing, on XDP and TCX hooks of links: what containers leave on their NICs."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from machines.nics import Lab, within
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.socket import Netlink

BPF_PROG_LOAD, BPF_PROG_ATTACH, BPF_LINK_CREATE = 5, 8, 28
XDP, SCHED_CLS = 6, 3  # program types
ATTACH_XDP = 37
RESULTS = {XDP: 2, SCHED_CLS: 0xFFFFFFFF}  # XDP_PASS, TC_ACT_UNSPEC
SYSCALL = {"x86_64": 321, "aarch64": 280}[os.uname().machine]

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, request: bytes) -> int:
    buffer = ctypes.create_string_buffer(request, 144)
    result = int(_libc.syscall(SYSCALL, command, buffer, 144))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def load(kind: int, result: int | None = None) -> int:
    """A program that always returns *result*, by default the one that changes nothing."""
    value = RESULTS[kind] if result is None else result
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, value - (value >> 31 << 32), 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    head = struct.pack("=IIQQ", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
    return bpf(BPF_PROG_LOAD, head)


@contextmanager
def left_on(lab: Lab, netns: str, ifname: str, hook: int, *, is_link: bool, also: str = "") -> Iterator[None]:
    """Attach a program to *hook* of a link, an attach type; by a bpf_link, its holder lives during the block.

    *also*: a second namespace, whose link of this name gets the same program.
    """
    fd = load(XDP if hook == ATTACH_XDP else SCHED_CLS)
    held = [fd]
    for place in filter(None, (netns, also)):
        ifindex = lab.links(place)[ifname]["ifindex"]
        held += within(lab, place, partial(attach, fd, ifindex, hook, is_link=is_link))
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)


def attach(fd: int, ifindex: int, hook: int, *, is_link: bool) -> list[int]:
    """Attach a loaded program in the calling thread's namespace: descriptors that keep it there."""
    if is_link:
        return [bpf(BPF_LINK_CREATE, struct.pack("=IIII", fd, ifindex, hook, 0))]
    if hook == ATTACH_XDP:
        xdp = nl.pack_attribute(1, struct.pack("=i", fd))
        body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + nl.pack_attribute(43 | nl.NLA_F_NESTED, xdp)
        with Netlink() as netlink:
            netlink.do(nl.Request(nl.RTM_SETLINK, body), "attach XDP")
    else:
        bpf(BPF_PROG_ATTACH, struct.pack("=IIII", ifindex, fd, hook, 0))
    return []
