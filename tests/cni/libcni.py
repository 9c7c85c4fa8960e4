"""What libcni does with a network configuration, as a model for tests.

Real executables; libcni's order, its standard input and variables, its cache, and its judgement of what a plugin
says: measured with libcni 1.2 and 1.3. A runtime that uses it is a few lines on top.
"""

import base64
import errno
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.answers import error_object
from cni.networks import NEWEST, Failed, Network, parse, read_json
from cni.results import CannotDecode, convert, decode
from qingcloud_cni.sim.fabric.shell import inside

BUSY_TRIES = 6  # of a program that is being written
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"  # all that systemd gives a runtime, and it its plugins
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME = re.compile(r"(?!\.{1,2}$)[^/:\s]+")


@dataclass(frozen=True)
class Call:
    """What a runtime says of one attachment; capability arguments reach plugins that ask for them."""

    container_id: str
    netns: str = ""
    ifname: str = ""
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Execution:
    """One run of a plugin, as it was."""

    verb: str
    plugin: str
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    status: int
    stdout: bytes
    stderr: bytes


@dataclass
class Libcni:
    """As a runtime on one host has it: plugins from *path*, run in the namespace called *netns* ("": this one)."""

    path: Sequence[Path]
    cache: Path
    netns: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    seconds: float | None = None  # after which a plugin is killed
    busy_wait: float = 1.0  # seconds between tries of a program that is being written
    executions: list[Execution] = field(default_factory=list)

    # --- verbs -------------------------------------------------------------------------------------------

    def add(self, network: Network, call: Call) -> dict[str, Any]:
        """ADD of all plugins in turn; the first that fails ends it, and nothing is undone."""
        result: dict[str, Any] | None = None
        for plugin in network.plugins:
            try:
                result = self._add(network, plugin, call, result)
            except Failed as err:
                raise err.wrapped(f'plugin type="{plugin["type"]}" failed (add)') from err
        assert result is not None
        self._remember(network, call, result)
        return result

    def check(self, network: Network, call: Call) -> None:
        if not network.allows("0.4.0"):
            raise Failed(f"configuration version {network.version!r} does not support the CHECK command")
        if network.disable_check:
            return
        result = self.cached_result(network, call)
        for plugin in network.plugins:
            self._execute("CHECK", _conf(network, plugin, call, result), call)

    def delete(self, network: Network, call: Call) -> None:
        """DEL in reverse; the first that fails keeps those before it in the list from being asked at all."""
        result = None
        if network.allows("0.4.0"):
            try:
                result = self.cached_result(network, call)
            except Failed:
                self.forget(network, call)
        for plugin in reversed(network.plugins):
            try:
                self._execute("DEL", _conf(network, plugin, call, result), call)
            except Failed as err:
                raise err.wrapped(f'plugin type="{plugin["type"]}" failed (delete)') from err
        self.forget(network, call)

    def gc(self, network: Network, valid: Iterable[tuple[str, str]] | None) -> None:
        """DEL what is remembered of this network and is not in *valid*, then GC; None is to say nothing of it."""
        if network.disable_gc:
            return
        pairs = {(container_id, ifname) for container_id, ifname in valid or ()}
        failures: list[Failed] = []
        for name, call in self.remembered():
            if name == network.name and (call.container_id, call.ifname) not in pairs:
                failures += _tried(self.delete, network, call)
        if network.allows("1.1.0"):
            said: dict[str, Any] = {}
            if valid is not None:
                listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(pairs)]
                said = dict.fromkeys(("cni.dev/valid-attachments", "cni.dev/attachments"), listed or None)
            for plugin in network.plugins:
                failures += _tried(self._execute, "GC", _named(network, plugin) | said, Call(""))
        if failures:
            raise Failed("\n".join(map(str, failures)), failures[0].code)

    def status(self, network: Network) -> None:
        if network.allows("1.1.0"):
            for plugin in network.plugins:
                self._execute("STATUS", _named(network, plugin), Call(""))

    def versions(self, plugin: str) -> list[str]:
        """What VERSION says, asked as libcni asks: with dummies."""
        dummies = Call("", netns="dummy", ifname="dummy")
        try:
            stdout = self._execute("VERSION", {"type": plugin, "cniVersion": NEWEST}, dummies, path="dummy")
        except Failed as err:
            if str(err) == "unknown CNI_COMMAND: VERSION":
                return ["0.1.0"]
            raise
        info = read_json(stdout, "version info")
        if not info.get("cniVersion"):
            raise Failed("decoding version info: missing field cniVersion")
        if info.get("supportedVersions"):
            return list(info["supportedVersions"])
        if info["cniVersion"] == "0.2.0":
            return ["0.1.0", "0.2.0"]
        raise Failed("decoding version info: missing field supportedVersions")

    def validate(self, network: Network) -> None:
        """Whether every plugin is there and speaks the network's version."""
        wanted = network.version or "0.1.0"
        lacking = [plugin["type"] for plugin in network.plugins if wanted not in self.versions(plugin["type"])]
        if lacking:
            raise Failed(f"plugin {', '.join(lacking)} does not support config version {wanted!r}")

    # --- the cache ---------------------------------------------------------------------------------------

    def cached_result(self, network: Network, call: Call) -> dict[str, Any] | None:
        """In the network's version, whatever it was when it was cached."""
        kept = self._kept(network.name, call)
        if kept is None:
            return None
        try:
            return convert(kept["result"], network.version or "0.1.0")
        except CannotDecode as err:
            raise Failed(f"failed to convert cached result to config version {network.version!r}: {err}") from err

    def cached_network(self, name: str, call: Call) -> tuple[Network, Call] | None:
        """The configuration as it was at the ADD, and the arguments; what some runtimes send with DEL."""
        kept = self._kept(name, call)
        if kept is None:
            return None
        args = tuple((key, value) for key, value in kept.get("cniArgs") or call.args)
        again = Call(call.container_id, call.netns, call.ifname, args, kept.get("capabilityArgs") or {})
        return parse(base64.b64decode(kept["config"])), again

    def remembered(self) -> Iterator[tuple[str, Call]]:
        """Network and attachment of every entry, of all runtimes that share this cache."""
        for file in sorted(self.cache.glob("results/*")):
            kept = json.loads(file.read_bytes())
            args = tuple((key, value) for key, value in kept.get("cniArgs", []))
            capabilities = kept.get("capabilityArgs", {})
            yield (
                kept["networkName"],
                Call(kept["containerId"], kept.get("netns", ""), kept["ifName"], args, capabilities),
            )

    def _entry(self, name: str, call: Call) -> Path:
        return self.cache / "results" / f"{name}-{call.container_id}-{call.ifname}"

    def _kept(self, name: str, call: Call) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._entry(name, call).read_bytes()))
        except OSError:
            return None

    def _remember(self, network: Network, call: Call, result: Mapping[str, Any]) -> None:
        entry = {
            "kind": "cniCacheV1",
            "containerId": call.container_id,
            "config": base64.b64encode(network.source).decode(),
            "ifName": call.ifname,
            "networkName": network.name,
            "netns": call.netns,
            "cniArgs": call.args,
            "capabilityArgs": call.capability_args,
            "result": result,
        }
        file = self._entry(network.name, call)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(json.dumps({key: value for key, value in entry.items() if value}))

    def forget(self, network: Network, call: Call) -> None:
        self._entry(network.name, call).unlink(missing_ok=True)

    # --- plugins -----------------------------------------------------------------------------------------

    def _add(
        self, network: Network, plugin: Mapping[str, Any], call: Call, result: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if not _ID.fullmatch(call.container_id):
            raise Failed(f"invalid characters in containerID; {call.container_id}")
        if not _ID.fullmatch(network.name):
            raise Failed(f"invalid characters found in network name; {network.name}")
        if not _IFNAME.fullmatch(call.ifname) or len(call.ifname.encode()) > 15:
            raise Failed(f"interface name is invalid; {call.ifname}")
        return judge_result(
            self._execute("ADD", _conf(network, plugin, call, result), call), network.version or "0.1.0"
        )

    def _find(self, plugin: str) -> Path:
        for directory in self.path:
            if plugin == Path(plugin).name and (directory / plugin).is_file():
                return directory / plugin
        raise Failed(f"failed to find plugin {plugin!r} in path {[str(place) for place in self.path]}")

    def _execute(self, verb: str, config: Mapping[str, Any], call: Call, path: str = "") -> bytes:
        program = self._find(config["type"])
        environment = {
            **self.environment,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": call.container_id,
            "CNI_NETNS": call.netns,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in call.args),
            "CNI_IFNAME": call.ifname,
            "CNI_PATH": path or ":".join(map(str, self.path)),
        }
        stdin = {key: value for key, value in config.items() if verb != "VERSION" or key != "type"}
        status, stdout, stderr = self._run(program, json.dumps(stdin).encode(), environment)
        self.executions.append(Execution(verb, program.name, stdin, environment, status, stdout, stderr))
        if status:
            if program.name == "qingcni" and status > 0:
                error_object(status, stdout)
            raise judge_failure(status, stdout, stderr)
        return stdout

    def _run(self, program: Path, stdin: bytes, environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
        """Exit status, stdout and stderr; it is not over before both are closed, killed or not."""

        def start() -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            return subprocess.Popen([program], env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe)

        for _ in range(BUSY_TRIES):
            try:
                process = inside(self.netns, start) if self.netns else start()
            except OSError as err:
                if err.errno == errno.ETXTBSY:
                    time.sleep(self.busy_wait)
                    continue
                why = os.strerror(err.errno or 0).lower()
                raise Failed(f"netplugin failed with no error message: fork/exec {program}: {why}") from None
            killer = threading.Timer(self.seconds or 0, process.kill)
            if self.seconds is not None:
                killer.start()
            stdout, stderr = process.communicate(stdin)
            killer.cancel()
            return process.returncode, stdout, stderr
        return 0, b"", b""  # libcni takes a program that stayed busy for one that said nothing


def _tried(do: Any, *args: Any) -> list[Failed]:
    try:
        do(*args)
    except Failed as err:
        return [err]
    return []


def _named(network: Network, plugin: Mapping[str, Any]) -> dict[str, Any]:
    return {**plugin, "name": network.name, "cniVersion": network.version}


def _conf(
    network: Network, plugin: Mapping[str, Any], call: Call, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a plugin finds on stdin; its `capabilities` stay, and keys of the list never get there."""
    document = _named(network, plugin)
    if result is not None:
        document["prevResult"] = result
    asked = [key for key, is_asked in (plugin.get("capabilities") or {}).items() if is_asked]
    runtime_config = {key: call.capability_args[key] for key in asked if key in call.capability_args}
    return document | {"runtimeConfig": runtime_config} if runtime_config else document


# --- judgement -------------------------------------------------------------------------------------------


def judge_result(stdout: bytes, version: str) -> dict[str, Any]:
    """The result in what a plugin printed before it exited with 0; *version* is the configuration's."""
    if not stdout.strip():
        raise Failed("failed to unmarshal raw result: unexpected end of JSON input")
    if stdout.strip() == b"null":
        stdout = b"{}"
    document = read_json(stdout, "raw result")
    spoken = document.get("cniVersion")
    spoken = spoken if isinstance(spoken, str) and spoken else version
    try:
        return decode(document, spoken)
    except CannotDecode as err:
        raise Failed(str(err)) from err


def judge_failure(status: int, stdout: bytes, stderr: bytes) -> Failed:
    """The error of a plugin that did not exit with 0."""
    if not stdout:
        if stderr:
            return Failed(f"netplugin failed: {stderr.decode()!r}")
        ended = f"exit status {status}" if status > 0 else "signal: killed" if status == -9 else f"signal: {-status}"
        return Failed(f"netplugin failed with no error message: {ended}")
    try:
        error = json.loads(stdout) or {}
        code, msg, details = error.get("code") or 0, error.get("msg") or "", error.get("details") or ""
    except (ValueError, AttributeError):
        code = msg = details = None
    if type(code) is int and code >= 0 and isinstance(msg, str) and isinstance(details, str):
        return Failed(f"{msg}; {details}" if details else msg, code)
    return Failed(f"netplugin failed but error parsing its diagnostic message {stdout.decode()!r}")
