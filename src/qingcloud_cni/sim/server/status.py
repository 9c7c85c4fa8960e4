"""A simulator's reports: the line it prints when it is ready, and its status."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qingcloud_cni.sim.cloud import jobs
from qingcloud_cni.sim.cloud.records import SavedCloud
from qingcloud_cni.sim.cloud.state import CloudState
from qingcloud_cni.sim.fabric.layout import Layout, manager_address
from qingcloud_cni.sim.fabric.shell import NETNS_DIR
from qingcloud_cni.sim.server.control import API_SOCKET
from qingcloud_cni.sim.topology import HostSpec, Topology

API_HOST = "127.0.0.1"

_LINK = {None: "none", True: "plugged", False: "returning"}


@dataclass(frozen=True, slots=True)
class Options:
    sim: str
    topology: Topology
    state_dir: Path
    seed: int
    port: int
    saved: SavedCloud | None = None  # the cloud to go on with, found in the state directory
    guest_dhcp: bool = False  # hosts configure every NIC on them, as stock images do
    is_left: bool = False  # at its end all it made stays, for a later simulator to adopt


def host_files(state_dir: Path, host: HostSpec) -> tuple[Path, Path]:
    return state_dir / host.name / "client.yaml", state_dir / host.name / "instance-id"


def startup_info(options: Options, layout: Layout, state: CloudState) -> dict[str, Any]:
    """The line that a simulator prints when it is ready; docs/simulator.md lists its keys."""
    routers = {router.router_id: str(NETNS_DIR / router.namespace) for router in layout.routers}
    return {
        "name": options.sim,
        "pid": os.getpid(),
        "seed": options.seed,
        "zone": options.topology.zone,
        "endpoint": f"http://{API_HOST}:{options.port}/iaas/",
        "state_dir": str(options.state_dir),
        "api_socket": str(options.state_dir / API_SOCKET),
        "namespaces": {
            "router": next(iter(routers.values())),
            "routers": routers,
            "hosts": {host.name: _host(options, layout, state, host) for host in options.topology.hosts},
        },
        "vxnets": [
            {
                "vxnet_id": vxnet.vxnet_id,
                "name": vxnet.name,
                "router_id": vxnet.router_id,
                "network": vxnet.network,
                "manager_ip": str(address.ip) if (address := manager_address(vxnet)) else "",
            }
            for vxnet in options.topology.vxnets
        ],
    }


def _host(options: Options, layout: Layout, state: CloudState, host: HostSpec) -> dict[str, str]:
    primary = state.nics_of(host.instance_id)[0]
    client_yaml, instance_id_file = host_files(options.state_dir, host)
    return {
        "netns": str(NETNS_DIR / layout.hosts[host.instance_id].namespace),
        "instance_id": host.instance_id,
        "client_yaml": str(client_yaml),
        "instance_id_file": str(instance_id_file),
        "simulator_netns": ",".join(str(NETNS_DIR / router.namespace) for router in layout.routers),
        "nic_id": primary.nic_id,
        "address": primary.private_ip,
        "vxnet_id": host.vxnet_id,
    }


def cloud_status(state: CloudState, links: dict[str, bool], calls: dict[str, int]) -> dict[str, Any]:
    """Instances, NICs with their links, jobs, and the number of calls per action."""
    now = state.now()
    return {
        "calls": calls,
        "instances": [
            {"instance_id": host.instance_id, "status": host.status, "nics": len(state.nics_of(host.instance_id))}
            for host in state.hosts.values()
        ],
        "nics": [
            {key: value for key, value in asdict(nic).items() if key != "is_plugged"}
            | {"link": _LINK[links.get(nic.nic_id)]}
            for nic in state.nics.values()
        ],
        "jobs": [
            {"job_id": job.job_id, "action": job.action, "nics": job.nic_ids, "status": jobs.status(job, now)}
            for job in state.jobs.values()
        ],
    }
