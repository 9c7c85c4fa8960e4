"""The vendor's own clients, unchanged, on the simulator: Python SDK, command line, and requests in Go's style."""

import asyncio
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from aiohttp import web

from qingcloud_cni.cloud.calls import canonical, signature
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.api.http import make_app
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.local import run_jobs
from qingcloud_cni.sim.topology import Effect, FaultSpec, Latencies, PlugNic, Topology, UnplugNic, default_topology

HOST, PODS = "i-xhost1", "vxnet-pods001"
COMMAND_LINE = Path(sys.executable).parent / "qingcloud"
DEADLINE = 15.0  # seconds for anything to happen that shall


class Server:
    """The simulated cloud on loopback, in a thread of its own."""

    def __init__(self, *faults: FaultSpec) -> None:
        base = default_topology("x")
        quick = Latencies(attach=(0.02, 0.05), detach=(0.02, 0.05))
        self.topology = Topology(base.routers, base.vxnets, base.hosts, latencies=quick, faults=faults)
        self.model = Model(self.topology, rng=random.Random(1), now=time.time)
        self.plugged: list[str] = []
        self.port = 0
        self._ready: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="simulated-cloud")

    def __enter__(self) -> "Server":
        self._thread.start()
        self._ready.result(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def config(self, path: Path) -> Path:
        """Write an access file with the keys the official command line understands."""
        keys = {
            "qy_access_key_id": self.topology.access_key_id,
            "qy_secret_access_key": self.topology.secret_access_key,
            "zone": self.topology.zone,
            "host": "127.0.0.1",
            "port": self.port,
            "protocol": "http",
        }
        path.write_text(yaml.safe_dump(keys))
        return path

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as err:
            if not self._ready.done():
                self._ready.set_exception(err)
            raise

    async def _serve(self) -> None:
        api = Api(self.model, now=time.time, sleep=asyncio.sleep, rng=random.Random(2))
        runner = web.AppRunner(make_app(api), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(run_jobs(self.model, self._carry_out, asyncio.sleep, time.time))
            self._ready.set_result(None)
            await self._stop.wait()
            pump.cancel()
        await runner.cleanup()

    def _carry_out(self, *effects: Effect) -> None:
        for effect in effects:
            if isinstance(effect, PlugNic):
                self.plugged.append(effect.nic_id)
            elif isinstance(effect, UnplugNic):
                self.plugged.remove(effect.nic_id)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


# --- qingcloud-sdk -----------------------------------------------------------------------------------

SDK_SCRIPT = """
import json, sys, time
from qingcloud.iaas import APIConnection

key, secret, zone, port, host, vxnet = json.load(sys.stdin)
cloud = APIConnection(key, secret, zone, host="127.0.0.1", port=port, protocol="http")
said = {}

def ask(name, reply):
    said[name] = reply
    assert reply is not None and reply["ret_code"] == 0, (name, reply)
    return reply

def finish(name, job_id):
    end = time.monotonic() + 10
    while True:
        (job,) = ask(name, cloud.describe_jobs(jobs=[job_id]))["job_set"]
        if job["status"] not in ("pending", "working"):
            assert job["status"] == "successful", job
            return
        assert time.monotonic() < end, job
        time.sleep(0.02)

ask("instances", cloud.describe_instances(instances=[host], verbose=1))
ask("vxnets", cloud.describe_vxnets(vxnets=[vxnet]))
made = ask("create", cloud.create_nics(vxnet, nic_name="sdk nic ~*", count=2))
nics = [nic["nic_id"] for nic in made["nics"]]
ask("asked", cloud.create_nics(vxnet, count=1, private_ips=["172.20.1.77"]))
finish("attach-job", ask("attach", cloud.attach_nics(nics, host))["job_id"])
ask("attached", cloud.describe_nics(nics=nics, status="in-use", limit=10))
ask("named", cloud.describe_nics(nic_name="sdk nic ~*"))
ask("modify", cloud.modify_nic_attributes(nics[0], nic_name="renamed"))
finish("detach-job", ask("detach", cloud.detach_nics(nics))["job_id"])
ask("detached", cloud.describe_nics(nics=nics))
ask("delete", cloud.delete_nics(nics))
ask("deleted", cloud.describe_nics(nics=nics))
said["again"] = cloud.delete_nics(nics)
finish("stop-job", ask("stop", cloud.stop_instances([host]))["job_id"])
finish("terminate-job", ask("terminate", cloud.terminate_instances([host]))["job_id"])
ask("terminated", cloud.describe_instances(instances=[host]))
json.dump(said, sys.stdout)
"""


def run_sdk(server: Server, *, secret: str = "") -> dict[str, Any]:
    """Run the script in a process of its own: the SDK's import warns, which these tests would take for an error."""
    topology = server.topology
    asked = (topology.access_key_id, secret or topology.secret_access_key, topology.zone, server.port, HOST, PODS)
    done = subprocess.run(
        [sys.executable, "-c", SDK_SCRIPT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def test_the_sdk_creates_attaches_lists_detaches_and_deletes(server: Server) -> None:
    said = run_sdk(server)
    nics = [nic["nic_id"] for nic in said["create"]["nics"]]
    assert len(set(nics)) == 2
    assert said["asked"]["nics"][0]["private_ip"] == "172.20.1.77"
    assert said["attach-job"]["job_set"][0]["job_action"] == "AttachNics"
    assert [(n["status"], n["instance_id"]) for n in said["attached"]["nic_set"]] == [("in-use", HOST)] * 2
    assert [n["nic_id"] for n in said["named"]["nic_set"]] == nics
    assert [(n["nic_name"], n["status"]) for n in said["detached"]["nic_set"]] == [
        ("renamed", "available"),
        ("sdk nic ~*", "available"),
    ]
    assert said["deleted"]["nic_set"] == []
    assert said["again"]["ret_code"] == 2100
    assert [i["status"] for i in said["terminated"]["instance_set"]] == ["terminated"]
    assert server.plugged == []


def test_the_sdk_with_a_wrong_secret_gets_an_error(server: Server) -> None:
    with pytest.raises(AssertionError, match="1200"):
        run_sdk(server, secret="wrong")
    assert not server.model.calls


def test_the_sdk_repeats_a_create_whose_reply_was_lost_and_has_two() -> None:
    """The known flaw of the SDK, and so proof that a lost reply is a broken connection after the work is done."""
    with Server(FaultSpec("CreateNics", "lose-reply")) as server:
        run_sdk(server)
        assert server.model.calls["CreateNics"] == 3
        assert len([nic for nic in server.model.state.nics.values() if nic.name == "sdk nic ~*"]) == 2


# --- qingcloud-cli -----------------------------------------------------------------------------------


class CommandLine:
    def __init__(self, config: Path) -> None:
        self._config = config

    def __call__(self, command: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [COMMAND_LINE, "iaas", command, *arguments, "-f", self._config],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        said = json.loads(done.stdout)
        assert isinstance(said, dict)
        return said

    def finish(self, job_id: str) -> None:
        end = time.monotonic() + DEADLINE
        while (status := self("describe-jobs", "-j", job_id)["job_set"][0]["status"]) in {"pending", "working"}:
            assert time.monotonic() < end
        assert status == "successful"


def test_the_command_line_creates_attaches_lists_detaches_and_deletes(server: Server, tmp_path: Path) -> None:
    qingcloud = CommandLine(server.config(tmp_path / "conf.yaml"))
    (nic,) = (made["nic_id"] for made in qingcloud("create-nics", "-x", PODS, "-N", "by hand")["nics"])
    qingcloud.finish(qingcloud("attach-nics", "-i", HOST, "-n", nic)["job_id"])
    assert server.plugged == [nic]
    listed = qingcloud("describe-nics", "-s", "in-use", "-t", "1", "-x", PODS)
    assert [(n["nic_id"], n["instance_id"]) for n in listed["nic_set"]] == [(nic, HOST)]
    qingcloud.finish(qingcloud("detach-nics", "-n", nic)["job_id"])
    assert server.plugged == []
    assert qingcloud("delete-nics", "-n", nic)["ret_code"] == 0
    assert qingcloud("describe-nics", "-n", nic)["nic_set"] == []
    assert qingcloud("describe-nics")["total_count"] == 2  # the hosts' own


# --- as the Go SDK does it ---------------------------------------------------------------------------


class GoStyle:
    """Requests to `/iaas` without a slash and without `version`; an empty value goes as a bare name."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)

    def __call__(self, action: str, method: str = "GET", bare: str = "", **params: str) -> dict[str, Any]:
        topology = self._server.topology
        wire = {
            "access_key_id": topology.access_key_id,
            "action": action,
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "zone": topology.zone,
            **params,
        }
        query = "&".join(sorted([*canonical(wire).split("&"), *([bare] if bare else [])]))
        made = signature(topology.secret_access_key, method, "/iaas", query)
        query += f"&signature={quote(made, safe='')}"
        if method == "GET":
            self.connection.request("GET", f"/iaas?{query}")
        else:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            self.connection.request("POST", "/iaas", query, form)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == 200
        assert answer.headers.get_all("Content-Type") == ["application/json"]
        assert answer.headers["Content-Length"] == str(len(content))
        assert not answer.will_close
        said = json.loads(content)
        assert isinstance(said, dict)
        return said


def test_requests_as_go_sends_them_are_served_on_one_kept_connection(server: Server) -> None:
    go = GoStyle(server)
    nic = go("CreateNics", vxnet=PODS, count="1", nic_name="hostnic")["nics"][0]["nic_id"]
    socket = go.connection.sock
    assert go("DescribeNics", bare="nic_name", **{"nics.1": nic})["total_count"] == 1
    assert go("DescribeNics", "POST", nic_name="hostnic")["total_count"] == 1
    job = go("AttachNics", instance=HOST, **{"nics.1": nic})["job_id"]
    end = time.monotonic() + DEADLINE
    while go("DescribeJobs", **{"jobs.1": job})["job_set"][0]["status"] != "successful":
        assert time.monotonic() < end
        time.sleep(0.01)
    shown = go("DescribeNics", **{"instances.1": HOST, "limit": "100"})["nic_set"]
    assert [(n["nic_id"], n["role"]) for n in shown][1:] == [(nic, 0)]
    assert go("DescribeNics", "POST", nic_name="none")["nic_set"] == []
    assert go.connection.sock is socket
    go.connection.close()


def test_a_refusal_comes_with_status_200(server: Server) -> None:
    go = GoStyle(server)
    assert go("DeleteNics", **{"nics.1": "52:54:ff:ff:ff:ff"})["ret_code"] == 2100
    assert go("RunInstances")["ret_code"] == 1101
    go.connection.close()


def test_a_lost_reply_cuts_the_connection_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with Server(FaultSpec("CreateNics", "lose-reply")) as server:
        go = GoStyle(server)
        with pytest.raises(ConnectionError):
            go("CreateNics", vxnet=PODS)
        go.connection.close()
        assert go("DescribeNics", status="available")["total_count"] == 1
        go.connection.close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("PUT", "/iaas", 405), ("HEAD", "/iaas", 405)]
)
def test_what_is_no_request_of_the_api_is_refused_by_http(
    server: Server, method: str, path: str, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    connection.request(method, path)
    assert connection.getresponse().status == status
    connection.close()
