"""What attackers run: `python -m attack.hostile ATTACK ARGUMENT…`. It says "ready" when it has begun."""

import encodings.idna  # noqa: F401 - for names of hosts, before the rights to read it are dropped
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from machines.bpf_programs import ATTACH_XDP, SCHED_CLS, XDP, attach, load
from qingcloud_cni.kernel.nic_state.bpf import Hook

HOOKS = {"xdp": ATTACH_XDP, "tcx-ingress": Hook.TCX_INGRESS, "tcx-egress": Hook.TCX_EGRESS}
NOBODY = 65534
XDP_DROP, TC_ACT_SHOT = 1, 2


def leave_program(hook: str, kind: str) -> None:
    """One that drops every packet, on `eth0`; as a *link* it lasts as long as this process."""
    number = HOOKS[hook]
    fd = load(XDP, XDP_DROP) if hook == "xdp" else load(SCHED_CLS, TC_ACT_SHOT)
    held = attach(fd, socket.if_nametoindex("eth0"), number, is_link=kind == "link")
    begun()
    if held:
        time.sleep(3600)


def half_requests(address: str, port: str, count: str) -> None:
    """Keep *count* connections open on which a request never ends; those that are closed are opened again."""
    drop_rights()
    held: list[socket.socket] = []
    is_begun = False
    while True:
        while len(held) < int(count):
            caller = socket.socket()
            caller.settimeout(2)
            try:
                caller.connect((address, int(port)))
                caller.sendall(b"POST /v1/cni HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000\r\n\r\n{")
                caller.setblocking(False)
            except OSError:
                caller.close()
                break
            held.append(caller)
        if not is_begun:
            is_begun = True
            begun()
        time.sleep(0.2)
        held = [caller for caller in held if is_open(caller)]


def is_open(caller: socket.socket) -> bool:
    try:
        if caller.recv(65536):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    caller.close()
    return False


def endless_requests(address: str, port: str, count: str) -> None:
    """Send *count* requests at a time that never end: in turn endless headers and endless bodies."""
    drop_rights()
    heads = (b"GET /metrics HTTP/1.1\r\nX: ", b"POST /v1/cni HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    pieces = (b"x" * 65536, b"10000\r\n" + b"x" * 65536 + b"\r\n")

    def send(kind: int) -> None:
        while True:
            with suppress(OSError), socket.create_connection((address, int(port)), timeout=5) as caller:
                caller.sendall(heads[kind])
                while True:
                    caller.sendall(pieces[kind])
            time.sleep(0.01)

    for number in range(int(count)):
        threading.Thread(target=send, args=(number % 2,)).start()
    begun()


def ask_metrics(address: str, port: str) -> None:
    """Ask for the metrics all the time."""
    drop_rights()
    begun()
    while True:
        try:
            with socket.create_connection((address, int(port)), timeout=5) as caller:
                caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n")
                while caller.recv(65536):
                    pass
        except OSError:
            time.sleep(0.05)


def listen(port: str) -> None:
    """Take the agent's port, answer every request with success, and print what was heard."""
    drop_rights()
    with socket.create_server(("0.0.0.0", int(port))) as listener:
        begun()
        while True:
            caller, _ = listener.accept()
            with caller:
                caller.settimeout(0.5)
                heard = b""
                try:
                    while more := caller.recv(65536):
                        heard += more
                except OSError:
                    pass
                print(repr(heard), flush=True)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


def use_socket(directory: str) -> None:
    """Say how it ends."""
    drop_rights()
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(f"{directory}/agent.sock")
        except OSError as err:
            print(type(err).__name__)
        else:
            print("connected")


def take_name(name: str) -> None:
    """Bind a name of the abstract namespace of unix sockets."""
    drop_rights()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("\0" + name)
        begun()
        time.sleep(3600)


def drop_rights() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)  # drops all capabilities too


def begun() -> None:
    print("ready", flush=True)


ATTACKS: dict[str, Callable[..., None]] = {
    "leave_program": leave_program,
    "half_requests": half_requests,
    "endless_requests": endless_requests,
    "ask_metrics": ask_metrics,
    "listen": listen,
    "use_socket": use_socket,
    "take_name": take_name,
}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]](*sys.argv[2:])
