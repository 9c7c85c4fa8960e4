"""A running `qingcloud-sim` for tests: started under a name of its own, called through its API, always taken down."""

import base64
import hmac
import http.client
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qingcloud_cni.sim.api.signature import canonical
from qingcloud_cni.sim.fabric.leftovers import default_state_dir
from qingcloud_cni.sim.topology import default_topology

QINGCLOUD_SIM = str(Path(sys.executable).with_name("qingcloud-sim"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

_T = TypeVar("_T")


def unique_name() -> str:
    """For a cloud. tools/scratch.py learns it, so that nothing of it stays whatever becomes of the tests."""
    name = f"t{secrets.token_hex(3)}"
    if clouds := os.environ.get("QC_CLOUDS"):
        Path(clouds, name).touch()
    return name


def eventually(look: Callable[[], _T | None], what: str, seconds: float = 20.0) -> _T:
    """Call *look* until it returns something truthy, and return that; the longer it takes, the less often."""
    begun = time.monotonic()
    while True:
        seen = look()
        if seen:
            return seen
        waited = time.monotonic() - begun
        assert waited < seconds, f"not seen in {seconds} s: {what}"
        time.sleep(min(max(waited / 20, 0.02), 0.25))


def run(*argv: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a session of its own, where no Ctrl-C reaches it; with *check* a failure shows its output."""
    kwargs |= {"capture_output": True, "text": True, "start_new_session": True}
    done = subprocess.run(argv, timeout=60, check=False, **kwargs)
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}: {done.stderr}{done.stdout}"
    return done


@contextmanager
def disk_of(size: str, place: Path) -> Iterator[Path]:
    """A file system of *size* (`300k`, `2m`) at *place*, which is made for root alone."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


def fill(place: Path) -> Path:
    """Take all the room there is at *place*; the file to remove again."""
    others = place / "others"
    with suppress(OSError), others.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return others


def links(netns: str) -> dict[str, dict[str, Any]]:
    """Links of a namespace (its name) by MAC, as `ip -j link` shows them."""
    rows = json.loads(run("ip", "-n", netns, "-j", "link", "show").stdout or "[]")
    return {row["address"]: row for row in rows if row}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("sim", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Sim:
    info: dict[str, Any]  # the line it printed when it was ready
    process: subprocess.Popen[str]

    @property
    def name(self) -> str:
        return str(self.info["name"])

    def host(self, name: str = "host1") -> dict[str, str]:
        """What a host's agent has to know: netns, instance_id, files, simulator_netns, nic_id, address."""
        host: dict[str, str] = self.info["namespaces"]["hosts"][name]
        return host

    def netns(self, host: str = "host1") -> str:
        """The name of a host's namespace, as `ip -n` takes it."""
        return Path(self.host(host)["netns"]).name

    def call(self, action: str, **params: object) -> dict[str, Any]:
        """A signed call of the API; lists are flattened. The call must succeed."""
        answer = self.try_call(action, **params)
        assert answer["ret_code"] == 0, answer
        return answer

    def try_call(self, action: str, **params: object) -> dict[str, Any]:
        """As `call`, whatever the answer."""
        topology = default_topology(self.name)
        flat = {
            "action": action,
            "zone": str(self.info["zone"]),
            "access_key_id": topology.access_key_id,
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for key, value in params.items():
            if isinstance(value, list | tuple):
                flat |= {f"{key}.{n}": str(item) for n, item in enumerate(value, 1)}
            else:
                flat[key] = str(value)
        query = canonical(flat)
        digest = hmac.digest(topology.secret_access_key.encode(), f"GET\n/iaas/\n{query}".encode(), "sha256")
        signature = canonical({"s": base64.b64encode(digest).decode()})[2:]
        return self.ask("GET", f"/iaas/?{query}&signature={signature}")

    def ask(self, method: str, target: str, document: object = None) -> dict[str, Any]:
        connection = UnixConnection(self.info["api_socket"])
        try:
            body = None if document is None else json.dumps(document)
            connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/admin/status")

    def set_faults(self, *faults: Mapping[str, object]) -> None:
        """Replace all faults by these; each is written as in a file of faults."""
        answer = self.ask("POST", "/admin/faults", faults)
        assert len(answer.get("faults", "")) == len(faults), answer

    @contextmanager
    def faults(self, *faults: Mapping[str, object]) -> Iterator[None]:
        """While it lasts, these are in force and no others."""
        self.set_faults(*faults)
        try:
            yield
        finally:
            self.set_faults()

    @contextmanager
    def fault(self, action: str, effect: str) -> Iterator[None]:
        """While it lasts, this is what such calls get."""
        with self.faults({"action": action, "effect": effect, "times": 10_000}):
            yield

    def wait_job(self, job_id: str) -> None:
        def ended() -> bool:
            (job,) = self.call("DescribeJobs", jobs=[job_id])["job_set"]
            assert job["status"] != "failed", job
            return bool(job["status"] == "successful")

        eventually(ended, f"the end of job {job_id}")

    def new_nics(self, host: str, vxnet_id: str, count: int = 1) -> list[dict[str, str]]:
        """NICs created and attached by hand (nic_id, private_ip); their links are in the host's namespace."""
        nics = self.call("CreateNics", vxnet=vxnet_id, count=count, nic_name="by-hand")["nics"]
        nic_ids = [nic["nic_id"] for nic in nics]
        self.wait_job(self.call("AttachNics", instance=self.host(host)["instance_id"], nics=nic_ids)["job_id"])
        return list(nics)

    def remove_nics(self, *nic_ids: str) -> None:
        self.wait_job(self.call("DetachNics", nics=nic_ids)["job_id"])
        self.call("DeleteNics", nics=nic_ids)


def start_sim(name: str, *args: str, log: Path | None = None) -> Sim:
    """Start `qingcloud-sim up` with quick attaches and *args*, and wait until it is ready.

    Its session is its own: Ctrl-C does not reach it. Its stderr is added to *log*; the caller ends it.
    """
    quick = ("--attach-latency", "50ms..100ms", "--detach-latency", "50ms", "--replug-latency", "50ms..100ms")
    command = (QINGCLOUD_SIM, "up", "-v", "--name", name, *quick, *args)
    with log.open("a+") if log else tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
        assert process.stdout is not None
        late = threading.Timer(60, process.kill)
        try:
            late.start()
            line = process.stdout.readline()
            if not line:
                process.wait(timeout=30)
            said.seek(0)
            assert line, f"qingcloud-sim up ended with {process.returncode}: {said.read()}"
        except BaseException:
            end_sim(process)
            raise
        finally:
            late.cancel()
        return Sim(json.loads(line), process)


def end_sim(process: subprocess.Popen[str]) -> None:
    """End it as a user does; one that was killed has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def running_sim(*args: str, name: str = "", log: Path | None = None) -> Iterator[Sim]:
    """Start a simulator as `start_sim`, yield it when it is ready, take it down at the end, even if it was killed."""
    name = name or unique_name()
    given = dict(itertools.pairwise(args))
    state_dir = Path(given.get("--state-dir", default_state_dir(name)))
    try:
        sim = start_sim(name, *args, log=log)
        try:
            yield sim
        finally:
            end_sim(sim.process)
    finally:
        if state_dir.exists():  # it was killed
            run(QINGCLOUD_SIM, "down", "--name", name, "--state-dir", str(state_dir))
