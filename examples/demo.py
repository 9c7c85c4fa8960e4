#!/usr/bin/env python3
"""The main job of qingcloud-cni on one machine: containers on two hosts talk over cloud NICs of their own.

Run it with `make demo`, or as root with the Python of an environment that has the package installed. This file has
the story; demo_steps.py what happens in each step, demo_service.py the rules of a Service, demo_tools.py how a
container runtime's part is played, demo_stage.py the machine's side of it, and demo_teller.py how it is told.
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

from demo_stage import NAME, QINGAGENT, QINGCLOUD_SIM, Failed, Stage
from demo_steps import Steps
from demo_teller import Teller

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
         "qingcloud-sim plays QingCloud: its API, and hosts, vxnets and NICs as real kernel interfaces.",
         Steps.bring_up_cloud),
    Step("The CNI plugin",
         "Container runtimes run one program per network, qingcni; it only carries their requests to the agent.",
         Steps.install_plugin),
    Step("An agent on each host",
         "qingagent owns the host's NICs. Each host takes them from a vxnet of its own and has a network of its own.",
         Steps.start_agents),
    Step("Warm pools",
         "The agent has NICs attached before containers ask, parked where nothing on the host touches them.",
         Steps.warm_up),
    Step("Three containers on each host",
         "A runtime execs the plugin: what to do in the environment, the network on stdin, the answer on stdout.",
         Steps.add_containers),
    Step("What a container sees",
         "The NIC itself is inside, under the name the runtime asked for: no bridge, no overlay, no translation.",
         Steps.look_inside),
    Step("Containers talk",
         "By ping and TCP, on one host and across hosts and vxnets; between vxnets the VPC's router is the only hop.",
         Steps.talk),
    Step("A Service",
         "kube-proxy's rules are the hosts', and containers' packets pass no host: a gateway NIC takes them there.",
         Steps.reach_service),
    Step("ADD repeated",
         "Runtimes ask twice when they lost an answer: the second answer is the first one.",
         Steps.add_again),
)  # fmt: skip
UNTIL_GONE = (
    Step("A NIC is recycled",
         "A deleted container's NIC rests, lest late packets find its address, then serves again: no cloud call.",
         Steps.recycle),
    Step("Unused NICs go back",
         "While host2's containers ran, its pool was filled up again; now it has more idle NICs than it wants.",
         Steps.give_back_unused),
    Step("Both hosts are drained",
         "As before a host is taken out of a cluster: no new container, and every free NIC goes back to the cloud.",
         Steps.drain),
    Step("The agents go",
         "A stop alone keeps the NICs for the next start; cleanup removes what the agent made on its host.",
         Steps.stop_agents),
    Step("Nothing is left",
         "The simulated cloud goes, and we look for anything that did not.",
         Steps.take_cloud_down),
)  # fmt: skip


class Interrupted(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def watch_signals() -> None:
    """The first signal raises Interrupted, wherever we are; later ones do not disturb the cleaning up."""

    def interrupted(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # a function and not SIG_IGN, which children would inherit
        raise Interrupted(number)

    for each in SIGNALS:
        signal.signal(each, interrupted)


def run(stage: Stage, tell: Teller, *, is_kept: bool) -> int:
    """Tell the story; the exit status. Whatever happens, only a kept stage that stands is left."""
    steps = Steps(stage, tell)
    story = UNTIL_UP if is_kept else UNTIL_UP + UNTIL_GONE
    status, begun = 1, time.monotonic()
    tell.chapter(f"Two hosts, two vxnets, six containers. All of it is called {stage.name}, its files are in")
    tell.chapter(f"{stage.directory}, and Ctrl-C takes it away. The programs are those in {QINGAGENT.parent}.")
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
        tell.trouble(f"{signal.Signals(err.number).name}: cleaning up")
    finally:
        left = [] if is_kept and status == 0 else stage.take_down()
    if left:
        tell.trouble("left behind: " + "\n".join(left))
        return 1
    if is_kept and status == 0:
        tell_what_to_try(stage, tell, steps)
    elif status == 0:
        tell.chapter(f"\nAll {len(story)} steps held, in {time.monotonic() - begun:.0f} s.")
        tell.chapter("To leave it up and try things: make demo ARGS=--keep")
    return status


def tell_failure(tell: Teller, err: Failed) -> None:
    tell.trouble(f"failed\nexpected: {err.expected}\ncame:     {err.came}")
    if err.log is not None and err.log.exists():
        tell.trouble(f"the end of {err.log}:")
        tell.show("\n".join(err.log.read_text(errors="replace").splitlines()[-LOG_LINES:]))


def tell_what_to_try(stage: Stage, tell: Teller, steps: Steps) -> None:
    """Commands that can be pasted: the programs with their paths."""
    host, netns, inside = steps.hosts["host2"], stage.netns_of("b4"), stage.netns_of("b4").name
    runtime = " ".join(f"{k}={v}" for k, v in stage.cni_variables("ADD", "b4").items())
    plugin = shlex.join(map(str, host.inside(stage.plugin)))
    take_down = shlex.join([sys.executable, str(Path(__file__).resolve()), "--take-down", str(stage.directory)])
    agent = [
        f"{QINGAGENT} {command} --config {host.config}" for command in ("status", "nics", "attachments", "drain")
    ]
    for what, *commands in (
        ("The agent on host2; the last waits until its containers are gone:", *agent),
        ("What it does, as it does it:", f"tail -f {host.log}"),
        ("The cloud:", f"{QINGCLOUD_SIM} status --name {stage.name}"),
        ("One more container on host2, added, used and deleted (host1 is full, its max-nics is reached):",
         f"ip netns add {inside}",
         f"{runtime} {plugin} < {host.network}",
         f"nsenter --net={netns} ping -c 3 {steps.ip_of('a1')}",
         f"{runtime.replace('=ADD', '=DEL', 1)} {plugin} < {host.network}"),
        ("To take everything down, that container included:", take_down),
    ):  # fmt: skip
        tell.chapter(f"\n{what}")
        for command in commands:
            tell.chapter(f"  {command}")


def take_down(directory: Path) -> int:
    """End a demo that was kept, or whose process was killed."""
    if not NAME.fullmatch(directory.name) or not directory.is_dir():
        print(f"demo: {directory} is no demo's directory", file=sys.stderr)
        return 2
    left = Stage(directory.absolute()).take_down()
    print("left behind: " + ", ".join(left) if left else f"{directory.name}: removed")
    return 1 if left else 0


def obstacle() -> str:
    """Why this machine cannot show the demo; "" if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "this makes network namespaces and needs root"
    return f"{', '.join(missing)}: missing on this machine" if missing else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Containers on two simulated hosts talk over cloud NICs of their own."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="leave all of it up and print commands to try")
    choice.add_argument("--take-down", type=Path, metavar="DIRECTORY", help="remove what --keep left, all of it")
    arguments = parser.parse_args()
    if why := obstacle():
        print(f"demo: {why}", file=sys.stderr)
        return 4
    if arguments.take_down:
        return take_down(arguments.take_down)
    watch_signals()
    stage: Stage | None = None
    try:
        stage = Stage.make(is_kept=arguments.keep)
        return run(stage, Teller(), is_kept=arguments.keep)
    except Interrupted as err:  # before the story, after it, or while it was cleaned up
        left = stage.take_down() if stage else []
        return 1 if left else 128 + err.number


if __name__ == "__main__":
    sys.exit(main())
