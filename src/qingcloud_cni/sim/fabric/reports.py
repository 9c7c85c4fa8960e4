"""The kernel's reports of link changes in a namespace: they only wake, what has changed is found by looking."""

import asyncio
import socket
import struct
from collections.abc import Set

RTM_NEWLINK = 16
RTM_DELLINK = 17

_RTMGRP_LINK = 1
_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port


def open_reports() -> socket.socket:
    """A socket on which the kernel reports changes of links in the namespace of the calling thread."""
    reports = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    reports.bind((0, _RTMGRP_LINK))
    return reports


def drain(reports: socket.socket, wake: asyncio.Event, kinds: Set[int]) -> None:
    """Read all reports there are; set *wake* if there was one of *kinds*, or if reports were lost."""
    while True:
        try:
            data = reports.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the kernel had more to say than the buffer held
            wake.set()
            return
        offset = 0
        while offset + _NLMSGHDR.size <= len(data):
            length, kind, *_ = _NLMSGHDR.unpack_from(data, offset)
            if kind in kinds:
                wake.set()
            offset += max(length + 3 & ~3, _NLMSGHDR.size)
