"""The command `qingcloud-sim`: a simulated QingCloud with its hosts, vxnets and router on this machine."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from qingcloud_cni.cli import show
from qingcloud_cni.cli.failing import reports_errors

Range = tuple[float, float]


def _read_range(_ctx: click.Context, param: click.Parameter, value: str | None) -> Range | None:
    from qingcloud_cni.sim.topology import parse_range

    try:
        return None if value is None else parse_range(value)
    except ValueError as err:
        raise click.BadParameter(str(err), param=param) from err


_reports_errors = reports_errors("qingcloud-sim")
_name = click.option(
    "--name", default="sim", show_default=True, help="Prefix of every namespace, so that several simulators coexist."
)
_state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the hosts' files and the API's socket.  [default: /run/qingcloud-sim/NAME]",
)
_output = click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Simulate a QingCloud on this machine: the API, and hosts, vxnets and NICs as real kernel interfaces."""


@main.command()
@_name
@_state_dir
@click.option("--topology", "file", type=click.Path(path_type=Path, dir_okay=False), help="Topology file (YAML).")
@click.option("--hosts", type=click.IntRange(1, 100), help="Hosts of the default topology.  [default: 2]")
@click.option("--seed", type=int, help="Of the random generator.  [default: a new one each time]")
@click.option(
    "--attach-latency", metavar="DURATION", callback=_read_range, help="Duration of AttachNics, such as 2s..4s."
)
@click.option("--detach-latency", metavar="DURATION", callback=_read_range, help="Duration of DetachNics.")
@click.option("--call-latency", metavar="DURATION", callback=_read_range, help="Latency of every answer.")
@click.option(
    "--replug-latency",
    metavar="DURATION",
    callback=_read_range,
    help="From the end of a NIC's namespace to its return.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=7777, show_default=True, help="Port of the API on each host."
)
@click.option("--guest-dhcp", is_flag=True, help="Hosts configure every NIC they see, as NetworkManager does.")
@click.option(
    "--keep", is_flag=True, help="Leave everything in place at the end, for an `up` with the same --state-dir."
)
@click.option("--verbose", "-v", is_flag=True, help="Log to stderr what happens to NICs.")
@_reports_errors
def up(
    *,
    name: str,
    state_dir: Path | None,
    file: Path | None,
    hosts: int | None,
    seed: int | None,
    port: int,
    guest_dhcp: bool,
    keep: bool,
    verbose: bool,
    **latencies: Range | None,
) -> None:
    """Start a simulated cloud and serve it in the foreground.

    Prints one JSON line when it is ready: namespaces, endpoint, paths. SIGINT and SIGTERM remove all of it. Continues
    with the cloud that an earlier simulator of this name has saved in --state-dir.
    """
    import random

    from qingcloud_cni.sim.cloud.records import read_saved_cloud
    from qingcloud_cni.sim.fabric.leftovers import default_state_dir
    from qingcloud_cni.sim.server.control import check_name, check_state_dir
    from qingcloud_cni.sim.server.server import Simulator
    from qingcloud_cni.sim.server.status import Options
    from qingcloud_cni.sim.server.topology_file import load_topology
    from qingcloud_cni.sim.topology import default_topology

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="qingcloud-sim: %(message)s")
    check_name(name)
    directory = state_dir.absolute() if state_dir else default_state_dir(name)
    check_state_dir(directory)
    saved = read_saved_cloud(directory, name) if state_dir else None
    if file:
        topology = load_topology(file, name, hosts)
    elif saved and hosts is None:
        topology = saved.records.topology
    else:
        topology = default_topology(name, 2 if hosts is None else hosts)
    given = {key.removesuffix("_latency"): value for key, value in latencies.items() if value is not None}
    options = Options(
        sim=name,
        topology=replace(topology, latencies=replace(topology.latencies, **given)),
        state_dir=directory,
        seed=random.SystemRandom().randrange(2**32) if seed is None else seed,
        port=port,
        saved=saved,
        guest_dhcp=guest_dhcp,
        is_left=keep,
    )
    asyncio.run(Simulator(options).run(lambda description: print(json.dumps(description), flush=True)))


@main.command()
@_name
@_state_dir
@_reports_errors
def down(name: str, state_dir: Path | None) -> None:
    """Stop a simulated cloud and remove all that it created, also after it was killed."""
    from qingcloud_cni.sim.server import control

    control.check_name(name)
    was_there = asyncio.run(control.stop_and_remove(name, _absolute(state_dir)))
    show.say(f"{name}: removed" if was_there else f"{name}: nothing to remove")


@main.command()
@_name
@_state_dir
@_output
@_reports_errors
def status(name: str, state_dir: Path | None, output: str) -> None:
    """Show instances, NICs, jobs and counted API calls of a simulated cloud."""
    from qingcloud_cni.sim.server import control

    control.check_name(name)
    found = asyncio.run(control.ask_status(name, _absolute(state_dir)))
    if output == "json":
        show.say(json.dumps(found))
    else:
        _show(found)


@main.group()
def faults() -> None:
    """Set the faults of a running simulated cloud, as in the topology file."""


@faults.command("set")
@click.argument("file", type=click.File("rb"))
@_name
@_state_dir
@_reports_errors
def set_faults(file: IO[bytes], name: str, state_dir: Path | None) -> None:
    """Replace all faults by the list in FILE (YAML or JSON; - is stdin). Counts of calls begin at 0."""
    import yaml

    from qingcloud_cni.core.errors import StartRefused
    from qingcloud_cni.sim.api.fault_list import read_faults
    from qingcloud_cni.sim.server import control

    control.check_name(name)
    try:
        document = yaml.safe_load(file.read())
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: an invalid date
        raise StartRefused(f"faults in {file.name}: {getattr(err, 'problem', None) or 'not valid YAML'}") from err
    try:
        read_faults(document)  # here as well: YAML has values that JSON cannot carry
        in_force = asyncio.run(control.set_faults(name, _absolute(state_dir), document or []))
    except (ValueError, StartRefused) as err:
        raise StartRefused(f"faults in {file.name}: {err}") from err
    _show_faults(in_force)


@faults.command("list")
@_name
@_state_dir
@_output
@_reports_errors
def list_faults(name: str, state_dir: Path | None, output: str) -> None:
    """Show the faults in force, each with the number of calls it will still affect."""
    from qingcloud_cni.sim.server import control

    control.check_name(name)
    in_force = asyncio.run(control.ask_faults(name, _absolute(state_dir)))
    if output == "json":
        show.say(json.dumps(in_force))
    else:
        _show_faults(in_force)


@faults.command("clear")
@_name
@_state_dir
@_reports_errors
def clear_faults(name: str, state_dir: Path | None) -> None:
    """Remove all faults."""
    from qingcloud_cni.sim.server import control

    control.check_name(name)
    asyncio.run(control.set_faults(name, _absolute(state_dir), []))


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path else None


def _show_faults(in_force: list[dict[str, Any]]) -> None:
    rows = [{key: "-" if value is None else value for key, value in row.items()} for row in in_force]
    columns = {"ACTION": "action", "EFFECT": "effect", "NTH": "nth", "TIMES": "times", "CHANCE": "chance",
               "LEFT": "left", "ENDS IN": "ends_in"}  # fmt: skip
    show.as_table(rows, columns, "no faults")


def _show(found: dict[str, Any]) -> None:
    show.say(f"{found['name']}: {found['endpoint']} in each host, {found['api_socket']}")
    show.say()
    show.as_table(found["instances"], {"INSTANCE": "instance_id", "STATUS": "status", "NICS": "nics"}, "no instances")
    columns = {"NIC": "nic_id", "ADDRESS": "private_ip", "VXNET": "vxnet_id", "STATUS": "status",
               "INSTANCE": "instance_id", "ROLE": "role", "BUSY": "busy", "LINK": "link", "NAME": "name"}  # fmt: skip
    show.say()
    show.as_table(found["nics"], columns, "no NICs")
    jobs = [job | {"nics": len(job["nics"])} for job in found["jobs"]]
    show.say()
    show.as_table(jobs, {"JOB": "job_id", "ACTION": "action", "NICS": "nics", "STATUS": "status"}, "no jobs")
    calls = [{"action": action, "calls": count} for action, count in sorted(found["calls"].items())]
    show.say()
    show.as_table(calls, {"CALL": "action", "TIMES": "calls"}, "no calls")
