"""The command `qingagent`: the agent itself, and the operator's view of it."""

import asyncio
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlencode

import click

from qingcloud_cni.cli import show
from qingcloud_cni.cli.failing import reports_errors
from qingcloud_cni.cli.options import SeedGroupHelp, SeedHelp, agent_config, global_options, resolved, with_settings
from qingcloud_cni.core.errors import AgentError

_reports_errors = reports_errors("qingagent")
_output = click.option("--output", "-o", "output", metavar="string", type=click.Choice(["table", "json"]),
                       default="table", help="table or json (default \"table\")")  # fmt: skip
START_HELP = "QingCloud container networking agent is a daemon process which allocates and recollects nics resources."
STOP_SECONDS = 30.0  # for which `stop` waits
POLL = 0.5  # seconds between requests while a command waits


@click.group(
    cls=SeedGroupHelp, context_settings={"help_option_names": ["-h", "--help"]}, params=list(global_options())
)
def main(**_flags: Any) -> None:
    """Give every container of this host a QingCloud NIC of its own."""


@with_settings()
@main.command(cls=SeedHelp, help=START_HELP)
@_reports_errors
def start(**_flags: Any) -> None:
    """Run in the foreground."""
    from qingcloud_cni.agent.process.main import serve

    asyncio.run(serve(_host(sys.stdout)))


def _host(log_stream: TextIO) -> Any:
    from qingcloud_cni.agent.api.config_report import config_report
    from qingcloud_cni.agent.base import logs
    from qingcloud_cni.agent.process.main import Host, check_root, keep_files_private

    check_root()
    keep_files_private()
    found = agent_config()
    settings, access = found.resolved.settings, found.access
    logs.set_up(settings.loglevel, log_stream)
    if access.unknown:
        logs.write("access-file.unknown-keys", keys=", ".join(access.unknown))
    report = config_report(found.resolved, found.instance_id, access)
    return Host(settings, found.instance_id, access, report)


@with_settings("run-dir")
@main.command(cls=SeedHelp, help="Stop the agent of this host; NICs and containers stay as they are.")
@_reports_errors
def stop(**_flags: Any) -> None:
    from qingcloud_cni.cli.agent_client import agent_pid

    pid = agent_pid(_socket())
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        ended, _, _ = select.select([process], [], [], STOP_SECONDS)
    finally:
        os.close(process)
    if not ended:
        raise AgentError(f"agent (pid {pid}): not stopped within {STOP_SECONDS:.0f} s; a second stop ends it at once")


def _add_view(name: str, help: str) -> None:  # noqa: A002 - as click names it
    """A command that prints the answer of GET /v1/*name*: as JSON, or as `show.VIEWS` says."""

    @with_settings("run-dir")
    @main.command(name, cls=SeedHelp, help=help)
    @_output
    @_reports_errors
    def command(output: str, **_flags: Any) -> None:
        found = _call("GET", f"/v1/{name}")
        (show.as_json if output == "json" else show.VIEWS[name])(found)


_add_view("status", "Show whether the agent is ready, and what it holds.")
_add_view("nics", "List the NICs of this host.")
_add_view("attachments", "List the containers that have a NIC.")
_add_view("tasks", "List the periodic tasks of the agent: last success, failures, and their cause.")
_add_view("plan", "Show what the pool would do now and why, and what it waits for.")


@with_settings("run-dir")
@main.command(cls=SeedHelp, help="List the events of this host, oldest first.")
@click.option("--lines", "-n", "limit", metavar="int", type=click.IntRange(1), default=100,
              help="number of the latest events (default 100)")  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="print new events until interrupted")
@click.option("--nic", metavar="string", default="", help="only of this NIC")
@click.option("--container", metavar="string", default="", help="only of containers whose id begins with this")
@click.option("--pod", metavar="string", default="", help="only of this pod: namespace/name, or the name alone")
@click.option("--name", metavar="string", default="", help="only events of this name, or of a kind such as nic")
@_output
@_reports_errors
def events(output: str, *, follow: bool, **asked: Any) -> None:
    from qingcloud_cni.cli import history

    query = {name: asked[name] for name in ("limit", "nic", "container", "pod", "name")}
    history.show_events(lambda target: _call("GET", target), query, output, follow=follow)


@with_settings("run-dir")
@main.command(cls=SeedHelp, help="Show the timeline of a container, pod or NIC, with the time each step took.")
@click.argument("of", metavar="id")
@_output
@_reports_errors
def explain(output: str, *, of: str, **_flags: Any) -> None:
    from qingcloud_cni.cli import history

    history.show_timelines(lambda target: _call("GET", target), of, output)


@with_settings("run-dir")
@main.command(cls=SeedHelp, help="Take a NIC out of use: no container gets it any more. The agent detaches and "
              "deletes it once it serves none.")  # fmt: skip
@click.argument("nic", metavar="nic")
@_reports_errors
def quarantine(*, nic: str, **_flags: Any) -> None:
    from qingcloud_cni.cli import show

    found = _call("POST", f"/v1/quarantine?{urlencode({'nic': nic})}")
    when = f"once {found['attachment']} releases it" if found["attachment"] else "now"
    show.say(f"nic {found['nic_id']}: out of use; the agent detaches and deletes it {when}")


@with_settings("run-dir")
@main.command(cls=SeedHelp, help="Accept no new container, release every free NIC, and wait for the others. "
              "A restart of the agent ends it.")  # fmt: skip
@click.option(
    "--timeout", metavar="duration", help="stop waiting after this long; the agent continues to drain (default none)"
)
@_reports_errors
def drain(timeout: str | None, **_flags: Any) -> None:
    end = time.monotonic() + (_seconds("--timeout", timeout) if timeout else float("inf"))
    _call("POST", "/v1/drain")
    last, listed = "", ""
    while True:
        found = _call("GET", "/v1/status")
        if found["drained"] and not found["attachments"]:
            show.say("drained: no NICs left")
            return
        text = f"NICs left: {sum(found['nics'].values())}, containers that have one: {found['attachments']}"
        text += f"; {found['cloud_error']}" if found["cloud_error"] else ""
        if text != last:
            show.say(text)
            last = text
        if found["drained"] and text != listed:
            show.as_attachments(_call("GET", "/v1/attachments"))
            listed = text
        if time.monotonic() >= end:
            raise AgentError(f"not drained within {timeout}: {text}")
        time.sleep(POLL)


@with_settings()
@main.command(
    cls=SeedHelp, help="With the agent stopped: release all NICs of this host's agent, and remove its files."
)
@click.option("--force", is_flag=True, help="also take the NICs of running containers")
@_reports_errors
def cleanup(*, force: bool, **_flags: Any) -> None:
    from qingcloud_cni.agent.process.cleanup import clean_up

    asyncio.run(clean_up(_host(sys.stderr), force=force, report=show.say))


@with_settings("QYAccessFilePath", "zone", "gatewayns", "nic-name-prefix", "instance-id", "instance-id-file",
               "allow-readable-access-file")  # fmt: skip
@main.command(cls=SeedHelp, help="List the NICs in this zone whose instance is gone; delete them with --delete. "
              "Needs no agent.")  # fmt: skip
@_output
@click.option("--delete", is_flag=True, help="delete them, after a confirmation")
@click.option("--yes", is_flag=True, help="delete without confirmation")
@click.option(
    "--older-than", metavar="duration", default="10m",
    help='ignore NICs that have been free for less (default "10m")',
)  # fmt: skip
@_reports_errors
def orphans(*, output: str, delete: bool, yes: bool, older_than: str, **_flags: Any) -> None:
    from qingcloud_cni.agent.base import logs
    from qingcloud_cni.cli.options import cloud_config
    from qingcloud_cni.cli.orphans import run

    found = cloud_config()
    logs.set_up(found.resolved.settings.loglevel, sys.stderr)
    seconds = _seconds("--older-than", older_than)
    run(found, older_than=seconds, delete=delete, is_agreed=yes, as_json=output == "json")


@main.group(cls=SeedGroupHelp, help="Inspect the settings of the agent.", params=list(global_options()))
def config(**_flags: Any) -> None: ...


@with_settings()
@config.command(
    "check",
    cls=SeedHelp,
    help="Check settings and access file as a start would; show each with its source.",
)
@_output
@_reports_errors
def config_check(output: str, **_flags: Any) -> None:
    import msgspec

    from qingcloud_cni.agent.api.config_report import CHECKED_AT_START, config_report

    found = agent_config()
    report = msgspec.to_builtins(config_report(found.resolved, found.instance_id, found.access))
    if output == "json":
        show.as_json({**report, "checked_at_start": CHECKED_AT_START})
    else:
        show.as_config(report, CHECKED_AT_START)


@main.command(
    "install-plugin", cls=SeedHelp, help="Write the CNI plugin qingcni into the container runtime's directory."
)
@click.option("--bin-dir", "bin_dir", metavar="path", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="directory of CNI plugins, such as /opt/cni/bin")  # fmt: skip
@click.option("--python", "python", metavar="path", type=click.Path(path_type=Path, dir_okay=False),
              help="interpreter that runs the plugin (default: the base of this program's environment)")  # fmt: skip
@_reports_errors
def install_plugin(bin_dir: Path, python: Path | None) -> None:
    from qingcloud_cni.cli.install_plugin import install_plugin as install

    show.say(f"installed {install(bin_dir, python)}")


@main.command(cls=SeedHelp, help="Show the version of this program.")
def version() -> None:
    from qingcloud_cni import __version__

    show.say(f"qingagent {__version__}")


def _seconds(flag: str, text: str) -> float:
    from qingcloud_cni.agent.settings.values import SECONDS
    from qingcloud_cni.core.errors import StartRefused

    try:
        return SECONDS.parse(text)
    except ValueError:
        raise StartRefused(f"{flag} {text!r}: rejected: expected {SECONDS.expected}") from None


def _socket() -> Path:
    return resolved().settings.socket


def _call(method: str, target: str) -> Any:
    from qingcloud_cni.cli.agent_client import call

    return call(_socket(), method, target)
