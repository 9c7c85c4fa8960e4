"""The examples of runtimes: each file parses, and its README names it and its target."""

import tomllib
from pathlib import Path

import pytest

from cni.networks import load
from pages import ROOT, anchors, links
from qingcloud_cni.core.cni.network_config import read_config

EXAMPLES = [ROOT / "examples" / name for name in ("crio", "mesos", "nomad")]
NETWORKS = [file for folder in EXAMPLES for file in folder.iterdir() if "mynet" in file.name]


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_the_readme_names_every_file_where_it_goes_and_how_to_verify(folder: Path) -> None:
    readme = folder / "README.md"
    files = [file for file in folder.iterdir() if file != readme]
    text = readme.read_text(encoding="utf-8")
    near = {link for link in links(readme) if not link.startswith("../")}
    assert near == {file.name for file in files}
    for target, _, anchor in (link.partition("#") for link in links(readme)):
        assert not anchor or anchor in anchors(folder / target)
        assert (folder / target).exists()
    for file in files:
        assert f"/{file.name}` |" in text, file.name
    assert "erify" in text
    assert anchors(readme)


@pytest.mark.parametrize("file", NETWORKS, ids=lambda file: file.parent.name)
def test_libcni_and_the_agent_accept_the_network(file: Path) -> None:
    network = load(file)
    assert network.name == "mynet"
    for plugin in network.plugins:
        config = read_config({**plugin, "name": network.name, "cniVersion": network.version})
        assert config.name == "mynet"


def test_cri_o_gets_the_network_and_the_plugin_directory() -> None:
    settings = tomllib.loads((ROOT / "examples" / "crio" / "10-qingcloud-cni.conf").read_text())
    assert settings == {
        "crio": {
            "network": {
                "cni_default_network": "mynet",
                "network_dir": "/etc/cni/net.d/",
                "plugin_dirs": ["/opt/cni/bin/"],
            }
        }
    }
