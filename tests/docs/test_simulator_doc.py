"""docs/simulator.md describes every option, key, effect and exit status."""

import re
from pathlib import Path

import click
import msgspec

from qingcloud_cni.cli.qingcloud_sim import faults, main
from qingcloud_cni.core.errors import EXIT
from qingcloud_cni.sim.cloud.faults import EFFECTS
from qingcloud_cni.sim.server import topology_file

PAGE = Path(__file__).parents[2].joinpath("docs", "simulator.md").read_text()
(EXAMPLE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_is_a_topology_and_shows_every_key(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(EXAMPLE)
    topology = topology_file.load_topology(file, "sim")
    assert [host.instance_id for host in topology.hosts] == ["i-0example", "i-simtwo"]
    shapes = [shape for shape in vars(topology_file).values() if isinstance(shape, type)]
    keys = {key for shape in shapes if issubclass(shape, msgspec.Struct) for key in shape.__struct_fields__}
    missing = {key for key in keys if not re.search(rf"\b{key}:", EXAMPLE)}
    assert not missing


def test_every_option_effect_and_exit_status_is_described() -> None:
    assert isinstance(faults, click.Group)
    for command in (*main.commands.values(), *faults.commands.values()):
        assert f"qingcloud-sim {command.name}" in PAGE or f"faults {command.name}" in PAGE, command.name
        for option in command.params:
            assert isinstance(option, click.Argument) or option.opts[0] in PAGE, f"{command.name} {option.opts[0]}"
    assert not [effect for effect in EFFECTS if f"| `{effect}` |" not in PAGE]
    assert not [status for status in EXIT.values() if f"\n| {status} |" not in PAGE]
