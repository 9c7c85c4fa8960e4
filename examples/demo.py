#!/usr/bin/env python3
"""The main job of qingcloud-cni on one machine: containers on two hosts talk over cloud NICs of their own.

Run it with `make demo`, or as root with the Python of an environment that has the package installed. This file lists
the steps; demo_steps.py carries them out, demo_service.py has the rules of a Service, demo_tools.py acts as the
container runtime, demo_environment.py makes and removes everything, and demo_reporter.py prints.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from demo_environment import NAME, QINGAGENT, QINGCLOUD_SIM, Environment, Failed
from demo_reporter import Reporter
from demo_steps import Steps

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOOLS = ("ip", "nft", "nsenter", "ping")
LOG_LINES = 15


@dataclass(frozen=True)
class Step:
    title: str
    why: str
    act: Callable[[Steps], None]


UNTIL_UP = (
    Step("A cloud on this machine",
         "qingcloud-sim simulates QingCloud: its API, and hosts, vxnets and NICs as real kernel interfaces.",
         Steps.bring_up_cloud),
    Step("The CNI plugin",
         "Container runtimes start one program per network, qingcni; it only sends their requests to the agent.",
         Steps.install_plugin),
    Step("An agent on each host",
         "qingagent owns the host's NICs. Each host takes them from a vxnet of its own and has a network of its own.",
         Steps.start_agents),
    Step("Warm pools",
         "The agent attaches NICs before containers need them, and parks them in a namespace of their own.",
         Steps.warm_up),
    Step("Three containers on each host",
         "A runtime execs the plugin: command in the environment, network on stdin, result on stdout.",
         Steps.add_containers),
    Step("What a container sees",
         "The NIC itself is inside, under the name that the runtime chose: no bridge, no overlay, no translation.",
         Steps.inspect_container),
    Step("Containers talk",
         "By ping and TCP, on one host and across hosts and vxnets; between vxnets the VPC's router is the only hop.",
         Steps.talk),
    Step("A Service",
         "kube-proxy's rules are on the hosts, which containers' packets bypass: a gateway NIC takes them there.",
         Steps.reach_service),
    Step("ADD repeated",
         "A runtime that lost an answer repeats its request, and gets the same answer.",
         Steps.add_again),
)  # fmt: skip
UNTIL_GONE = (
    Step("A NIC is recycled",
         "A deleted container's NIC cools down, so late packets miss its address, and serves again: no cloud call.",
         Steps.recycle),
    Step("Unused NICs are released",
         "While host2's containers ran, its agent refilled the pool; now it has more idle NICs than max-idle.",
         Steps.release_unused),
    Step("Both hosts are drained",
         "As before a host leaves a cluster: no new container, and the agent releases every free NIC.",
         Steps.drain),
    Step("The agents stop",
         "A stop alone keeps the NICs for the next start; cleanup removes what the agent made on its host.",
         Steps.stop_agents),
    Step("Nothing is left",
         "The simulator stops, and the demo checks that nothing remains.",
         Steps.stop_simulator),
)  # fmt: skip


class Interrupted(BaseException):
    """A signal arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def watch_signals() -> None:
    """The first signal raises Interrupted; later ones must not interrupt the removal."""

    def interrupted(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # a function and not SIG_IGN, which children would inherit
        raise Interrupted(number)

    for each in SIGNALS:
        signal.signal(each, interrupted)


def run(environment: Environment, tell: Reporter, *, is_kept: bool) -> int:
    """Carry out the steps; returns the exit status. Only a kept environment whose steps all succeeded remains."""
    steps = Steps(environment, tell)
    story = UNTIL_UP if is_kept else UNTIL_UP + UNTIL_GONE
    status, begun = 1, time.monotonic()
    tell.section(f"Two hosts, two vxnets, six containers. All of it is called {environment.name}, its files are in")
    tell.section(f"{environment.directory}, and Ctrl-C takes it away. The programs are those in {QINGAGENT.parent}.")
    try:
        for number, step in enumerate(story, 1):
            tell.headline(number, len(story), step.title, step.why)
            step.act(steps)
            tell.held()
        status = 0
    except Failed as err:
        tell_failure(tell, err)
    except Interrupted as err:
        status = 128 + err.number
        tell.failure(f"{signal.Signals(err.number).name}: cleaning up")
    finally:
        left = [] if is_kept and status == 0 else environment.remove_all()
    if left:
        tell.failure("left behind: " + "\n".join(left))
        return 1
    if is_kept and status == 0:
        tell_what_to_try(environment, tell, steps)
    elif status == 0:
        tell.section(f"\nAll {len(story)} steps held, in {time.monotonic() - begun:.0f} s.")
        tell.section("To leave it up and try things: make demo ARGS=--keep")
    return status


def tell_failure(tell: Reporter, err: Failed) -> None:
    tell.failure(f"failed\nexpected: {err.expected}\ncame:     {err.came}")
    if err.log is not None and err.log.exists():
        tell.failure(f"the end of {err.log}:")
        tell.show("\n".join(err.log.read_text(errors="replace").splitlines()[-LOG_LINES:]))


def tell_what_to_try(environment: Environment, tell: Reporter, steps: Steps) -> None:
    """Commands that can be pasted: the programs with their paths."""
    host, netns, inside = steps.hosts["host2"], environment.netns_of("b4"), environment.netns_of("b4").name
    runtime = " ".join(f"{k}={v}" for k, v in environment.cni_variables("ADD", "b4").items())
    plugin = shlex.join(map(str, host.inside(environment.plugin)))
    take_down = shlex.join([sys.executable, str(Path(__file__).resolve()), "--take-down", str(environment.directory)])
    agent = [
        f"{QINGAGENT} {command} --config {host.config}" for command in ("status", "nics", "attachments", "drain")
    ]
    for what, *commands in (
        ("The agent on host2; the last command waits until its containers are gone:", *agent),
        ("Its log:", f"tail -f {host.log}"),
        ("The cloud:", f"{QINGCLOUD_SIM} status --name {environment.name}"),
        ("One more container on host2, added, used and deleted (host1 is full, its max-nics is reached):",
         f"ip netns add {inside}",
         f"{runtime} {plugin} < {host.network}",
         f"nsenter --net={netns} ping -c 3 {steps.ip_of('a1')}",
         f"{runtime.replace('=ADD', '=DEL', 1)} {plugin} < {host.network}"),
        ("To remove everything, that container included:", take_down),
    ):  # fmt: skip
        tell.section(f"\n{what}")
        for command in commands:
            tell.section(f"  {command}")


def take_down(directory: Path) -> int:
    """Remove a demo that was kept, or whose process was killed."""
    if not NAME.fullmatch(directory.name) or not directory.is_dir():
        print(f"demo: {directory} is not a demo's directory", file=sys.stderr)
        return 2
    left = Environment(directory.absolute()).remove_all()
    print("left behind: " + ", ".join(left) if left else f"{directory.name}: removed")
    return 1 if left else 0


def start_failure() -> str:
    """Why this machine cannot run the demo; "" if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "start failed: it makes network namespaces; run as root"
    return f"{', '.join(missing)}: missing on this machine" if missing else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Containers on two simulated hosts talk over cloud NICs of their own."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="keep everything up and print commands to try")
    choice.add_argument("--take-down", type=Path, metavar="DIRECTORY", help="remove everything that --keep left")
    arguments = parser.parse_args()
    if why := start_failure():
        print(f"demo: {why}", file=sys.stderr)
        return 4
    if arguments.take_down:
        return take_down(arguments.take_down)
    watch_signals()
    environment: Environment | None = None
    try:
        environment = Environment.make(is_kept=arguments.keep)
        return run(environment, Reporter(), is_kept=arguments.keep)
    except Interrupted as err:  # before the steps, after them, or during the removal
        left = environment.remove_all() if environment else []
        return 1 if left else 128 + err.number


if __name__ == "__main__":
    sys.exit(main())
