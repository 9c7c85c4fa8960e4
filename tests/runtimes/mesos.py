"""Mesos's isolator `network/cni`: single plugins, no library, no version, its own checkpoint of each request."""

import json
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines.simulator import run
from qingcloud_cni.sim.fabric.shell import inside

RESERVED = "org.apache.mesos"
PORT_MAPPER = "mesos-cni-port-mapper"  # what it does for its delegate; it makes no rules here
_PORT_MAPPER = """
import json, os, subprocess, sys
config = json.load(sys.stdin)
for needed in (config["chain"], *(os.environ[f"CNI_{name}"] for name in ("CONTAINERID", "IFNAME", "NETNS"))):
    assert needed
delegate = {**config["delegate"], "name": config["name"], "args": config["args"]}
program = os.path.join(os.environ["CNI_PATH"], delegate["type"])
done = subprocess.run([program], input=json.dumps(delegate), stdout=subprocess.PIPE, text=True)
if os.environ["CNI_COMMAND"] == "ADD" and not done.returncode:
    assert json.loads(done.stdout)["ip4"]["ip"]
print(done.stdout)
sys.exit(done.returncode)
"""


def write_port_mapper(plugins_dir: Path) -> None:
    """Mesos's own plugin that wraps another one: its `args` replace those of its `delegate`."""
    file = plugins_dir / PORT_MAPPER
    file.write_text(f"#!{sys.executable} -IS\n{_PORT_MAPPER}")
    file.chmod(0o755)


class Failure(Exception):
    """What Mesos writes into its log; the container is not started, or not cleaned up."""


@dataclass
class Mesos:
    """An agent of Mesos; *root* is `/var/run/mesos/isolators/network/cni`, kept over a reboot by a flag."""

    root: Path
    plugins_dir: Path
    config_dir: Path
    netns: str  # the host's
    path: str | None = None  # PATH, which old versions do not pass on

    def networks(self) -> dict[str, Path]:
        """By name, from every file whatever it is called; what does not parse is skipped."""
        found: dict[str, Path] = {}
        for file in sorted(self.config_dir.iterdir()):
            try:
                network = _network_config(file.read_text(), self.plugins_dir)
            except Failure:
                continue
            found.setdefault(network["name"], file)
        return found

    # --- a container -------------------------------------------------------------------------------------

    def isolate(self, container_id: str, pid: int, infos: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """ADD of all networks at once, as eth0, eth1 …; what each answered, by network.

        *pid* is a process in the container's namespace, *infos* are `NetworkInfo` of the task. All are awaited,
        so that no DEL comes while an ADD is under way.
        """
        handle = self.handle(container_id)
        handle.parent.mkdir(parents=True)
        handle.touch()
        run("mount", "--no-mtab", "--bind", f"/proc/{pid}/ns/net", str(handle))
        with ThreadPoolExecutor(len(infos)) as pool:
            attaches = [
                pool.submit(self._attach, container_id, f"eth{n}", handle, info) for n, info in enumerate(infos)
            ]
        return {str(info["name"]): attach.result() for info, attach in zip(infos, attaches, strict=True)}

    def cleanup(self, container_id: str) -> None:
        """DEL of all networks at once, from the checkpoints; a failure keeps everything for another try."""
        directory = self.root / container_id
        attached = sorted(directory.glob("*/*/"))
        with ThreadPoolExecutor(max(len(attached), 1)) as pool:
            list(pool.map(lambda place: self._detach(container_id, place.parent, place.name), attached))
        handle = self.handle(container_id)
        if _is_namespace(handle):
            run("umount", "--no-mtab", str(handle))
        run("rm", "-r", str(directory))

    def handle(self, container_id: str) -> Path:
        """Where the namespace is kept; a plain file after a reboot."""
        return self.root / container_id / "ns"

    def _attach(self, container_id: str, ifname: str, handle: Path, info: Mapping[str, Any]) -> dict[str, Any]:
        name = str(info["name"])
        place = self.root / container_id / name / ifname
        place.mkdir(parents=True)
        document = json.loads(self.networks()[name].read_text())
        args = document.get("args", {})
        if RESERVED in args:
            raise Failure(f"{RESERVED!r} in 'args' should not be set: it is reserved by Mesos")
        document["args"] = args | {RESERVED: {"network_info": info}}
        checkpoint = place.parent / "network.conf"
        checkpoint.write_text(json.dumps(document))
        stdout = self._execute("ADD", container_id, ifname, str(handle), checkpoint)
        result = _network_info(stdout)
        (place / "network.info").write_text(stdout)
        return result

    def _detach(self, container_id: str, network: Path, ifname: str) -> None:
        handle = self.handle(container_id)
        netns = str(handle) if _is_namespace(handle) else None
        self._execute("DEL", container_id, ifname, netns, network / "network.conf")
        run("rm", "-r", str(network / ifname))

    def _execute(self, verb: str, container_id: str, ifname: str, netns: str | None, checkpoint: Path) -> str:
        """Stdout, once the plugin has ended and both streams are closed, without a deadline."""
        given = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_PATH": str(self.plugins_dir),
            "CNI_IFNAME": ifname,
            "CNI_NETNS": netns,
            "PATH": self.path,
        }
        environment = {key: value for key, value in given.items() if value is not None}
        plugin = self.plugins_dir / json.loads(checkpoint.read_text())["type"]

        def start() -> subprocess.Popen[str]:
            with checkpoint.open() as stdin:
                pipe = subprocess.PIPE
                return subprocess.Popen([plugin], env=environment, stdin=stdin, stdout=pipe, stderr=pipe, text=True)

        process = inside(self.netns, start)
        stdout, stderr = process.communicate()
        if process.returncode:
            raise Failure(f"The CNI plugin {str(plugin)!r} failed: stdout={stdout!r}, stderr={stderr!r}")
        return stdout


def _is_namespace(handle: Path) -> bool:
    """Whether it lies where namespaces lie, which a file left by a reboot does not."""
    return handle.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev


def _network_config(text: str, plugins_dir: Path) -> dict[str, Any]:
    """A configuration as Mesos's own type has it: what it does not list is ignored, what is listed must fit."""
    document = _object(text)
    _needs(document, "the configuration", "name", "type")
    plugins = [document["type"]]
    if "ipam" in document:
        _needs(document["ipam"], "ipam", "type")
        plugins.append(document["ipam"]["type"])
        for route in document["ipam"].get("routes", []):
            _needs(route, "a route", "dst")
    for plugin in plugins:
        file = plugins_dir / plugin
        if not file.is_file() or not file.stat().st_mode & stat.S_IXUSR:
            raise Failure(f"failed to find CNI plugin {plugin!r}")
    return document


def _network_info(text: str) -> dict[str, Any]:
    """What Mesos reads of a result: `ip4`, `ip6` and `dns`, nothing else."""
    document = _object(text)
    found: dict[str, Any] = {key: document[key] for key in ("ip4", "ip6", "dns") if key in document}
    for key, value in found.items():
        _needs(value, key, *(("ip",) if key != "dns" else ()))
        for route in value.get("routes", []):
            _needs(route, f"a route of {key}", "dst")
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as err:
        raise Failure(f"JSON parse failed: {err}") from err
    if not isinstance(document, dict):
        raise Failure("JSON parse failed: no object")
    return document


def _needs(document: object, what: str, *keys: str) -> None:
    if not isinstance(document, dict):
        raise Failure(f"Protobuf parse failed: {what} is no object")
    if lacking := [key for key in keys if not isinstance(document.get(key), str)]:
        raise Failure(f"Protobuf parse failed: Missing required fields: {what}: {', '.join(lacking)}")
