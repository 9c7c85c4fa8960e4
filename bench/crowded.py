"""ADD and DEL while peers without rights hold connections and ask for metrics, beside the same on a quiet host."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from bench.environment import VXNETS, Environment
from bench.measures import VERBS, Record, Size, start
from bench.plugins import Qingcni
from machines.crowd import crowd
from machines.hosts import PORT
from qingcloud_cni.agent.base.phases import Phase

HOLDERS = 2_000
CLIENTS = 24
BLOCKS = 4  # of each crowd, one after the other
LIMIT = 1.3  # times the quiet host
QUIET = "quiet"


def crowded(environment: Environment, size: Size, record: Record) -> None:
    """Measure ADD and DEL in turn: on a quiet host, with a crowd on another host, with one on this host."""
    with (
        environment.host("host1", VXNETS[0]) as host,
        environment.host("host2", VXNETS[1]) as other,
        environment.host_threads(host) as host_threads,
    ):
        start(host, 3, 3)
        ours, container = Qingcni(host, host_threads), host.container()
        many = partial(crowd, port=PORT, holders=HOLDERS, clients=CLIENTS)
        crowds: dict[str, Callable[[], AbstractContextManager[object]]] = {
            QUIET: nullcontext,
            "crowd elsewhere": partial(many, other.command(), host.address),
            "crowd on this host": partial(many, host.command(), "127.0.0.1"),
        }
        for _ in range(BLOCKS):
            for name, begin in crowds.items():
                with begin():
                    for _ in range(max(size.rounds // BLOCKS, 1)):
                        for verb in VERBS:
                            record.add(f"qingcni {verb}, {name}", ours.timed(verb, container))
                            answer = host.agent.events("cni.request")[-1]
                            own = answer["seconds"] - answer.get(Phase.KERNEL, 0.0)
                            record.add(f"agent's own share of {verb}, {name}", own)
    for verb in VERBS:
        quiet = record.sample(f"qingcni {verb}, {QUIET}").p50
        for name in crowds.keys() - {QUIET}:
            ratio = record.sample(f"qingcni {verb}, {name}").p50 / quiet
            record.expect(f"{verb}, p50, {name}", f"at most {LIMIT:g} x {QUIET}", ratio, LIMIT, "x")
