"""The topology file: valid contents, and the errors of invalid ones."""

from pathlib import Path

import pytest

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.sim.server.topology_file import load_topology
from qingcloud_cni.sim.topology import Latencies, Topology, default_topology, parse_range

SHAPE = """
routers: [{router_id: rtr-1, vpc_network: 10.0.0.0/8}]
vxnets: [{vxnet_id: vxnet-a, network: 10.0.0.0/24, router_id: rtr-1}]
hosts: [{name: one, vxnet_id: vxnet-a}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.yaml"


def load(file: Path, text: str, **kwargs: int) -> Topology:
    file.write_text(text)
    return load_topology(file, "sim", **kwargs)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s..4s", (2.0, 4.0)),
        ("200ms..1.5s", (0.2, 1.5)),
        ("3s", (3.0, 3.0)),
        ("0.5", (0.5, 0.5)),
        (7, (7.0, 7.0)),
        ("1 .. 2m", (1.0, 120.0)),
    ],
)
def test_durations_are_ranges_or_single(text: str | float, seconds: tuple[float, float]) -> None:
    assert parse_range(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "4s..2s", "1..2..3", "2s.."])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|ends before"):
        parse_range(text)


def test_an_empty_file_is_the_default_topology(file: Path) -> None:
    assert load(file, "") == default_topology("sim")
    assert len(load(file, "", hosts=5).hosts) == 5


def test_a_file_may_change_only_limits_latencies_and_faults(file: Path) -> None:
    text = """
limits: {nics_per_vxnet: 4}
latencies: {attach: 1s..2s, replug: 0.3}
faults: [{action: CreateNics, effect: refuse, nth: 2, code: 2500, message: full}]
"""
    topology = load(file, text)
    assert topology.hosts == default_topology("sim").hosts
    assert topology.limits.nics_per_vxnet == 4
    assert topology.limits.nics_per_instance == 64
    assert topology.latencies == Latencies(attach=(1.0, 2.0), replug=(0.3, 0.3))
    assert (topology.faults[0].nth, topology.faults[0].code) == (2, 2500)


def test_instance_ids_follow_the_simulators_name(file: Path) -> None:
    file.write_text(SHAPE)
    assert load_topology(file, "one-a").hosts[0].instance_id == "i-oneaone"
    assert load_topology(file, "two").hosts[0].instance_id == "i-twoone"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour: red", "colour: unknown key"),
        (SHAPE.replace("name: one", "nam: one"), "hosts[0]"),
        (SHAPE + "limits: {nics: 3}", "limits.nics: unknown key"),
        (SHAPE + "limits: {nics_per_vxnet: many}", "limits.nics_per_vxnet"),
        (SHAPE + "limits: {nics_per_vxnet: -1}", "limits.nics_per_vxnet"),
        (SHAPE + "latencies: {attach: soon}", "latencies.attach"),
        (SHAPE + "zone: ''", "zone"),
        (SHAPE + "faults: [{action: EatNics, effect: refuse}]", "faults[0].action"),
        (SHAPE + "faults: [{action: CreateNics, effect: fail-job}]", "faults[0]"),
        (SHAPE + "faults: [{action: CreateNics, effect: refuse, when: now}]", "faults[0].when: unknown key"),
        (SHAPE.replace("router_id: rtr-1}", "router_id: rtr-2}"), "vxnets[0].router_id"),
        (SHAPE.replace("10.0.0.0/24", "192.168.0.0/24"), "vxnets[0].network"),
        (SHAPE.replace("10.0.0.0/24", "10.0.0.1/24"), "vxnets[0].network"),
        (SHAPE.replace("10.0.0.0/24,", "10.0.0.0/24, manager_ip: 10.0.0.255,"), "vxnets[0].manager_ip"),
        (SHAPE.replace("vxnet_id: vxnet-a}", "vxnet_id: vxnet-b}"), "hosts[0].vxnet_id"),
        (SHAPE.replace("name: one", "name: One"), "hosts[0].name"),
        (SHAPE.replace("name: one", "name: router2"), "hosts[0].name"),
        (SHAPE.replace("name: one", "name: one, instance_id: x-1"), "hosts[0].instance_id"),
        ("hosts: [{name: one, vxnet_id: vxnet-a}]", "vxnets: at least one is needed where the file gives hosts"),
        ("vxnets: []", "vxnets: at least one is needed where the file gives vxnets"),
        (SHAPE.replace("name: one", "name: one, access_key_id: OTHER"), "hosts[0].access_key_id"),
        (SHAPE + "more_keys: [{access_key_id: OTHER, secret_access_key: ''}]", "more_keys[0].secret_access_key"),
        (SHAPE + "more_keys: [{access_key_id: SIMULATEDACCESSKEYID, secret_access_key: x}]", "is given twice"),
        (SHAPE + "faults: [{action: CreateNics, effect: reset, lasts: soon}]", "faults[0].lasts"),
        (SHAPE + "faults: [{action: CreateNics, effect: reset, vxnet: vxnet-z}]", "faults[0].vxnet"),
        ("- a\n- b", "cloud.yaml"),
        ("a: [", "line 1"),
        ("zone: 2026-13-45", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(file: Path, text: str, key: str) -> None:
    with pytest.raises(StartRefused) as refusal:
        load(file, text)
    sentence = str(refusal.value)
    assert str(file) in sentence
    assert key in sentence
    assert "\n" not in sentence


def test_overlapping_vxnets_and_repeated_names_are_refused(file: Path) -> None:
    twice = SHAPE.replace("vxnets: [", "vxnets: [{vxnet_id: vxnet-b, network: 10.0.0.128/25, router_id: rtr-1}, ")
    with pytest.raises(StartRefused, match=r"vxnets\[1\]\.network: .* overlaps"):
        load(file, twice)
    with pytest.raises(StartRefused, match=r"hosts\[1\]\.name: 'one' is given twice"):
        load(file, SHAPE.replace("hosts: [", "hosts: [{name: one, vxnet_id: vxnet-a}, "))


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(StartRefused, match=r"cloud\.yaml: No such file"):
        load_topology(file, "sim")


def test_hosts_given_twice_are_refused(file: Path) -> None:
    with pytest.raises(StartRefused, match="--hosts"):
        load(file, SHAPE, hosts=3)
