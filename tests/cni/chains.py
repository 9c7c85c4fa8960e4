"""Lists of plugins that `qingcni` is part of, run as libcni runs them, beside the reference plugins. For tests."""

import json
from collections.abc import Mapping
from typing import Any

from bench.environment import peers_directory
from cni.libcni import Call, Libcni
from cni.networks import Network, parse
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import eventually


def libcni_of(host: Host) -> Libcni:
    """As a runtime on *host* has it, with the plugins of Debian's `containernetworking-plugins` beside ours."""
    return Libcni((host.plugin.parent, peers_directory()), host.directory / "cache", host.netns)


def ours(host: Host, **keys: Any) -> dict[str, Any]:
    """Our plugin's object in a list; *keys* go over those of the seed."""
    conf = {key: value for key, value in host.conf(None).items() if key != "name"}
    return conf | keys


def chain(version: str, *plugins: Mapping[str, Any], name: str = "mynet", **keys: Any) -> Network:
    return parse(json.dumps({"name": name, "cniVersion": version, "plugins": plugins, **keys}).encode())


def call_of(container: Container, ifname: str = "eth0", **capabilities: Any) -> Call:
    return Call(container.name, container.path, ifname, (), capabilities)


def wait_until_all_is_back(host: Host) -> None:
    """Cloud, table and kernel agree that no NIC is held."""
    eventually(lambda: host.is_untouched() and host.is_calm(), f"all NICs of {host.name} idle", seconds=60.0)
