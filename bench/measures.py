"""The measurements; each writes samples and figures to a Record."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.environment import (
    VXNETS,
    BenchFailed,
    Environment,
    Mover,
    execute,
    peers_directory,
    processor_seconds,
    resident,
)
from bench.figures import Figure, Sample, burst_bound, parallel_bound
from bench.plugins import Bridge, HostDevice, MeasuredPlugin, Qingcni
from machines.containers import Container
from machines.hosts import Host
from qingcloud_cni.agent.base.phases import Phase

VERBS = ("ADD", "DEL")
MIB = 1024.0 * 1024.0
NOISE = 1.0  # MiB of variation in resident memory without growth


@dataclass(frozen=True)
class Size:
    """Numbers of measurements."""

    rounds: int  # of each serial thing
    parallel: int  # ADDs at once
    volleys: int  # times they are sent
    burst: int  # pods on a cold pool
    nics: int  # of the host whose agent does nothing
    pairs: int  # ADD and DEL while memory is watched
    idle: float  # seconds of doing nothing
    starts: int  # of an agent with all NICs


@dataclass
class Record:
    """The results."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    figures: list[Figure] = field(default_factory=list)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)  # mean seconds by verb and phase

    def add(self, name: str, seconds: float) -> None:
        self.samples[name].append(seconds)

    def sample(self, name: str) -> Sample:
        return Sample(name, tuple(self.samples[name]))

    def expect(self, name: str, target: str, measured: float, limit: float, unit: str = "ms") -> None:
        self.figures.append(Figure(name, target, measured, limit, unit))

    def expect_time(self, name: str, target: str, seconds: float, limit: float) -> None:
        """A figure in milliseconds, of times in seconds."""
        self.expect(name, target, seconds * 1000, limit * 1000)


def held(idle: int, most: int) -> dict[str, object]:
    """Settings of an agent that keeps so many NICs idle, with the default log level."""
    return {"min_idle": idle, "max_idle": max(idle, 8), "max_nics": most, "loglevel": "info"}


def start(host: Host, idle: int, most: int) -> None:
    host.start(idle=idle, **held(idle, most))


# --- ADD and DEL ---------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Three plugins and a bare mover, each with its own NICs on hosts of one cloud."""

    host: Host
    ours: Qingcni
    host_device: HostDevice
    bridge: Bridge
    mover: Mover
    macs: list[str]  # of host-device's NICs
    spare: str  # MAC of a NIC that only the mover uses

    @property
    def plugins(self) -> tuple[MeasuredPlugin, ...]:
        return self.ours, self.host_device, self.bridge


@contextmanager
def comparison(environment: Environment, size: Size) -> Iterator[Comparison]:
    with (
        environment.host("host1", VXNETS[0]) as host,
        environment.host("host2", VXNETS[1]) as other,
        environment.host_threads(host, size.parallel) as ours,
        environment.host_threads(other, size.parallel) as theirs,
    ):
        start(host, size.parallel, size.parallel)
        addresses = environment.nics(other, size.parallel + 1)
        names = environment.names(other, list(addresses))
        spare, *macs = addresses
        away = other.container()
        mover = theirs.do(Mover, Path(environment.sim.host("host2")["netns"]), away.path)
        peers = peers_directory()
        data = environment.directory / "host-local"
        try:
            yield Comparison(
                host,
                Qingcni(host, ours),
                HostDevice(peers / "host-device", theirs, [(names[mac], addresses[mac]) for mac in macs]),
                Bridge(peers / "bridge", theirs, data),
                mover,
                macs,
                spare,
            )
        finally:
            mover.close()


def serial(environment: Environment, size: Size, record: Record) -> None:
    """Measure plugin start, bare moves, ADD and DEL of each plugin, in turn; then ADDs at once."""
    with comparison(environment, size) as here:
        containers = [here.host.container() for _ in here.plugins]
        _round(environment, here, containers, Record())  # warms caches and one-time work
        calls, phases = environment.calls(), metrics(here.host)
        for _ in range(size.rounds):
            _round(environment, here, containers, record)
        churn = (environment.calls() - calls) / size.rounds
        record.phases = mean_phases(phases, metrics(here.host))
        answers = here.host.agent.events("cni.request")[-2 * size.rounds :]
        for answer in answers:
            own = answer["seconds"] - answer.get(Phase.KERNEL, 0.0)
            record.add(f"agent's own share of {answer['verb']}", own)
        _judge_serial(record, churn)
        parallel(here, size, record)


def _round(environment: Environment, here: Comparison, containers: list[Container], record: Record) -> None:
    host_threads, theirs = here.ours.host_threads, here.host_device.host_threads
    record.add("python3 -IS, empty", host_threads.do(execute, environment.empty, {}, b""))
    record.add("qingcni VERSION", host_threads.do(execute, environment.plugin, {"CNI_COMMAND": "VERSION"}, b""))
    record.add("host-device VERSION", theirs.do(execute, here.host_device.program, {"CNI_COMMAND": "VERSION"}, b""))
    record.add("kernel move into a container", theirs.do(here.mover.there, here.spare))
    record.add("kernel move back", theirs.do(here.mover.back, here.spare))
    for verb in VERBS:
        for plugin, container in zip(here.plugins, containers, strict=True):
            record.add(f"{plugin.name} {verb}", plugin.timed(verb, container))


def _judge_serial(record: Record, churn: float) -> None:
    p50 = {name: record.sample(name).p50 for name in record.samples}
    start, move = p50["python3 -IS, empty"], p50["kernel move into a container"]
    record.expect_time("plugin start", "within 1.2 x of an empty python3 -IS", p50["qingcni VERSION"], 1.2 * start)
    record.expect_time("warm ADD, p50", "kernel move + 16 ms", p50["qingcni ADD"], move + 0.016)
    for verb in VERBS:
        own = p50[f"agent's own share of {verb}"]
        record.expect_time(f"agent's own share of {verb}, p50", "at most 3 ms besides the kernel", own, 0.003)
        record.expect_time(
            f"{verb}, p50", "not slower than host-device", p50[f"qingcni {verb}"], p50[f"host-device {verb}"]
        )
    record.expect("cloud calls per pod, steady churn", "0", churn, 0.0, "")


def parallel(here: Comparison, size: Size, record: Record) -> None:
    """Measure ADDs at once on a warm pool, qingcni and host-device in turn, and as many bare moves."""
    theirs = here.host_device.host_threads
    groups = [
        (plugin, [here.host.container() for _ in range(size.parallel)]) for plugin in (here.ours, here.host_device)
    ]
    for _ in range(size.volleys):
        for verb in VERBS:
            for plugin, containers in groups:
                begun = time.perf_counter()
                running = [
                    plugin.host_threads.begin(plugin.run, verb, container, slot)
                    for slot, container in enumerate(containers)
                ]
                for each in running:
                    each.result()
                record.add(f"{plugin.name} {size.parallel} {verb} at once", time.perf_counter() - begun)
        here.host.wait_idle(size.parallel)
        record.add(f"{size.parallel} kernel moves", sum(theirs.do(here.mover.there, mac) for mac in here.macs))
        record.add(f"{size.parallel} kernel moves back", sum(theirs.do(here.mover.back, mac) for mac in here.macs))
    begin = record.sample("qingcni VERSION").p50
    bound = parallel_bound(record.sample(f"{size.parallel} kernel moves").p50, begin)
    taken = record.sample(f"qingcni {size.parallel} ADD at once").p50
    target = f"1.2 x ({size.parallel} kernel moves + one plugin start)"
    record.expect_time(f"{size.parallel} ADDs at once, warm", target, taken, bound)


# --- a cold burst --------------------------------------------------------------------------------------


def burst(environment: Environment, size: Size, record: Record) -> None:
    """Measure more pods at once than idle NICs, and the cloud's share on another host."""
    pods = size.burst
    move = kernel_move(environment, size, record)
    with environment.host("host4", VXNETS[2]) as other:
        begun = time.perf_counter()
        nics = environment.sim.new_nics(other.name, other.vxnet, pods)
        cloud = time.perf_counter() - begun
        environment.sim.remove_nics(*(nic["nic_id"] for nic in nics))
    record.add(f"one create and one attach of {pods} by hand", cloud)
    with environment.host("host3", VXNETS[2]) as host, environment.host_threads(host, pods) as host_threads:
        start(host, 3, 60)
        ours, containers, calls = (
            Qingcni(host, host_threads),
            [host.container() for _ in range(pods)],
            environment.calls(),
        )
        begun = time.perf_counter()
        running = [host_threads.begin(ours.run, "ADD", container) for container in containers]
        for each in running:
            record.add("qingcni ADD in a cold burst", each.result())
        taken = time.perf_counter() - begun
        record.add(f"cold burst of {pods}", taken)
        calls = environment.calls() - calls
        if len({attachment["nic_id"] for attachment in host.attachments()}) != pods:
            raise BenchFailed("cold burst: pods share a NIC")
    target = f"create + attach job + {pods} moves x 1.3 + 1 s"
    record.expect(f"cold burst of {pods}, 3 idle", target, taken, burst_bound(pods, move, cloud), "s")
    record.expect("cloud calls per pod, cold burst", "at most 0.2", calls / pods, 0.2, "")


def kernel_move(environment: Environment, size: Size, record: Record) -> float:
    """Median seconds of a move into a container, measured now unless it was."""
    name = "kernel move into a container"
    if name not in record.samples:
        with environment.host("host5", VXNETS[1]) as host, environment.host_threads(host) as host_threads:
            (mac,) = environment.nics(host, 1)
            mover = host_threads.do(Mover, Path(environment.sim.host("host5")["netns"]), host.container().path)
            for _ in range(size.rounds):
                record.add(name, host_threads.do(mover.there, mac))
                record.add("kernel move back", host_threads.do(mover.back, mac))
            mover.close()
            environment.sim.remove_nics(mac)
    return record.sample(name).p50


# --- the agent at rest, and over time --------------------------------------------------------------------

AFTER_START = 6.0  # seconds for work after a start: probes of all NICs take some two


def rest(environment: Environment, size: Size, record: Record) -> None:
    """Measure memory, processor and start of an agent with all its NICs, then memory over many requests."""
    with environment.host("host5", VXNETS[1]) as host:
        start(host, size.nics, size.nics)
        for _ in range(size.starts):
            host.agent.stop()
            begun = time.perf_counter()
            agent = host.launch(**held(size.nics, size.nics))
            while not host.is_ready(agent):
                time.sleep(0.01)
            record.add(f"agent start to ready, {size.nics} NICs", time.perf_counter() - begun)
        host.wait_idle(size.nics)
        time.sleep(AFTER_START)
        before, begun = processor_seconds(agent.pid), time.perf_counter()
        time.sleep(size.idle)
        share = (processor_seconds(agent.pid) - before) / (time.perf_counter() - begun)
        ready = record.sample(f"agent start to ready, {size.nics} NICs").p50
        record.expect(f"start to ready with {size.nics} NICs", "at most 2 s", ready, 2.0, "s")
        record.expect("processor, idle", "below 0.5 % of a core", share * 100, 0.5, "%")
        record.expect(f"memory at {size.nics} NICs", "at most 60 MB RSS", resident(agent.pid) / MIB, 60.0, "MiB")
        growth(host, size, record)


def growth(host: Host, size: Size, record: Record) -> None:
    """Measure the agent's memory during requests to its socket, four at a time."""
    containers = [host.container() for _ in range(4)]

    def pairs(container: Container, count: int) -> None:
        body = {"config": host.conf(), "containerID": container.name, "netns": container.path, "ifname": "eth0"}
        for _ in range(count):
            for verb in VERBS:
                reply = host.ask("POST", "/v1/cni", json.dumps(body | {"command": verb}).encode())
                if reply.status != 200:
                    raise BenchFailed(f"{verb}: {reply.body.decode()}")

    def all_pairs(count: int) -> None:
        with ThreadPoolExecutor(len(containers)) as pool:
            list(pool.map(lambda container: pairs(container, count // len(containers)), containers))

    all_pairs(min(size.pairs, 400))  # one-time growth
    before = resident(host.agent.pid)
    all_pairs(size.pairs)
    grown = (resident(host.agent.pid) - before) / MIB
    record.expect(f"memory after {size.pairs} ADD/DEL", f"no growth (within {NOISE:g} MiB)", grown, NOISE, "MiB")


# --- the agent's metrics ---------------------------------------------------------------------------------


def metrics(host: Host) -> dict[tuple[str, str, str], float]:
    """Sum and count of each phase, by verb."""
    text = host.metrics()
    return {
        (sample.labels["verb"], sample.labels["phase"], sample.name.rpartition("_")[2]): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "qingagent_cni_phase_seconds"
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def mean_phases(
    before: dict[tuple[str, str, str], float], after: dict[tuple[str, str, str], float]
) -> dict[str, dict[str, float]]:
    """Mean seconds by verb and phase between two readings."""
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return {
        verb: {phase: grown[verb, phase, "sum"] / max(grown[verb, phase, "count"], 1.0) for phase in Phase}
        for verb in VERBS
    }
