"""BPF programs on a link (XDP, TCX), by bpf(2): a container may leave them, and neither GETLINK nor tc shows TCX.

Layouts: union bpf_attr in linux/bpf.h. The kernel looks for a link in the calling thread's network namespace.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

NUMBER = {  # of bpf(2), which has no function in the C library; None where it is unknown
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351,
}.get(platform.machine())  # fmt: skip
BPF_PROG_DETACH: Final = 9
BPF_PROG_GET_FD_BY_ID: Final = 13
BPF_OBJ_GET_INFO_BY_FD: Final = 15
BPF_PROG_QUERY: Final = 16
BPF_LINK_GET_FD_BY_ID: Final = 30
BPF_LINK_GET_NEXT_ID: Final = 31
BPF_LINK_DETACH: Final = 34
BPF_LINK_TYPE_XDP: Final = 6
NEVER: Final = frozenset({errno.EINVAL, errno.ENOSYS})  # a kernel without the hook: no program can be there
MOST: Final = 64  # programs of a hook (BPF_MPROG_MAX)

# Of BPF_PROG_QUERY: index, hook, two flags, address of program ids, their number, padding, address of attach flags,
# addresses of link ids and link flags, revision
_QUERY: Final = struct.Struct("=IIIIQIIQQQQ")
_INFO: Final = struct.Struct("=IIQ")  # file descriptor, length and address of the answer
_LINK_INFO: Final = struct.Struct("=IIIII")  # type, link id, program id, padding, index of an XDP link
_LINK_INFO_BYTES: Final = 256
_LOAD_TIME: Final = struct.Struct("=40xQ")  # in bpf_prog_info: nanoseconds since boot
_PROG_INFO_BYTES: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Hook(IntEnum):
    """Attach types of programs on a link that GETLINK does not show (Linux 6.6)."""

    TCX_INGRESS = 46
    TCX_EGRESS = 47


def has_tcx(ifindex: int) -> bool:
    """Whether a program is attached to a TCX hook of the link; OSError if the kernel does not answer."""
    return any(_query(ifindex, hook) for hook in Hook)


def tcx_programs(ifindex: int) -> tuple[int, ...]:
    """Ids of the programs on the link's TCX hooks."""
    return tuple(program for hook in Hook for program, _ in _attached(ifindex, hook))


def detach_tcx(ifindex: int) -> None:
    """Detach all programs from the link's TCX hooks, with any holder; OSError as the kernel refuses."""
    for hook in Hook:
        for program, link in _attached(ifindex, hook):
            if link:
                _detach_link(link)
            else:
                with _opened(BPF_PROG_GET_FD_BY_ID, program) as fd:
                    _bpf(BPF_PROG_DETACH, bytearray(struct.pack("=IIII", ifindex, fd, hook, 0)))


def detach_xdp_link(ifindex: int, program: int) -> bool:
    """Detach the link that holds *program* on the link's XDP hook; False if more than one may be meant.

    A link's information has the index but not the namespace, so another namespace may have an equal one.
    """
    holders = [link for link in _link_ids() if _xdp_target(link) == (program, ifindex)]
    if len(holders) != 1:
        return False
    _detach_link(holders[0])
    return True


def loaded_at(program: int) -> float:
    """When a program was loaded, in seconds of the host's uptime."""
    with _opened(BPF_PROG_GET_FD_BY_ID, program) as fd:
        return float(_LOAD_TIME.unpack_from(_info(fd, _PROG_INFO_BYTES))[0]) / 1e9


def _attached(ifindex: int, hook: Hook) -> list[tuple[int, int]]:
    """Program and link ids of a hook; no link: id 0."""
    if not _query(ifindex, hook):
        return []
    programs, links = (ctypes.c_uint32 * MOST)(), (ctypes.c_uint32 * MOST)()
    count = _query(ifindex, hook, MOST, ctypes.addressof(programs), ctypes.addressof(links))
    return list(zip(programs[:count], links[:count], strict=True))


def _query(ifindex: int, hook: Hook, room: int = 0, programs: int = 0, links: int = 0) -> int:
    """The number of programs of a hook; *programs* and *links* are the addresses of *room* ids."""
    request = bytearray(_QUERY.pack(ifindex, hook, 0, 0, programs, room, 0, 0, links, 0, 0))
    try:
        _bpf(BPF_PROG_QUERY, request)
    except OSError as err:
        if err.errno in (errno.ENOENT, *NEVER):
            return 0
        raise
    return int(_QUERY.unpack(request)[5])


def _link_ids() -> Iterator[int]:
    link = 0
    while True:
        request = bytearray(struct.pack("=III", link, 0, 0))
        try:
            _bpf(BPF_LINK_GET_NEXT_ID, request)
        except FileNotFoundError:
            return
        link = struct.unpack_from("=I", request, 4)[0]
        yield link


def _xdp_target(link: int) -> tuple[int, int] | None:
    """Program id and index of an XDP link; None for another link, or one that is gone."""
    try:
        with _opened(BPF_LINK_GET_FD_BY_ID, link) as fd:
            kind, _, program, _, ifindex = _LINK_INFO.unpack_from(_info(fd, _LINK_INFO_BYTES))
    except FileNotFoundError:
        return None
    return (program, ifindex) if kind == BPF_LINK_TYPE_XDP else None


def _detach_link(link: int) -> None:
    with _opened(BPF_LINK_GET_FD_BY_ID, link) as fd:
        _bpf(BPF_LINK_DETACH, bytearray(struct.pack("=I", fd)))


@contextmanager
def _opened(command: int, number: int) -> Iterator[int]:
    fd = _bpf(command, bytearray(struct.pack("=III", number, 0, 0)))
    try:
        yield fd
    finally:
        os.close(fd)


def _info(fd: int, size: int) -> bytes:
    answer = ctypes.create_string_buffer(size)
    _bpf(BPF_OBJ_GET_INFO_BY_FD, bytearray(_INFO.pack(fd, size, ctypes.addressof(answer))))
    return answer.raw


def _bpf(command: int, request: bytearray) -> int:
    """Call bpf(2); *request* has the answer afterwards."""
    if NUMBER is None:
        raise OSError(errno.EOPNOTSUPP, f"its number on {platform.machine()} is unknown")
    buffer = (ctypes.c_char * len(request)).from_buffer(request)
    result = int(_libc.syscall(NUMBER, command, buffer, len(request)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return result
