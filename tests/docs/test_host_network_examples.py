"""The examples for NetworkManager and networkd exclude pool NICs and no others."""

import configparser
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pages import ROOT, anchors, links
from qingcloud_cni.agent.settings.resolution import resolve

NETWORKMANAGER = ROOT / "examples" / "networkmanager"
NETWORKD = ROOT / "examples" / "networkd"
PRIMARY = resolve({}, {}, {}, "").settings.iface
POOL = ("eth1", "eth10", "ens4", "enp0s7", "dev42")  # as they arrive, by the image's naming, and as they return


def sections(file: Path) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(comment_prefixes=("#",), delimiters=("=",), strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys are case-sensitive
    parser.read_string(file.read_text(encoding="utf-8"))
    return {name: dict(parser[name]) for name in parser.sections()}


def is_unmanaged_by_networkmanager(spec: str, name: str) -> bool:
    """NetworkManager.conf(5), "Device List Format", of an Ethernet link: any match counts unless one is excepted."""
    hits = {"type:ethernet"}
    is_matched = is_excepted = False
    for part in spec.split(";"):
        wish = part.removeprefix("except:")
        kind, _, pattern = wish.partition(":")
        hit = wish in hits or (kind == "interface-name" and fnmatchcase(name, pattern))
        is_excepted |= hit and part.startswith("except:")
        is_matched |= hit and not part.startswith("except:")
    return is_matched and not is_excepted


def test_networkmanager_manages_the_hosts_own_nic_alone() -> None:
    found = sections(NETWORKMANAGER / "90-qingcloud-cni.conf")
    assert list(found) == ["device-qingcloud-cni"], "NetworkManager reads only sections that begin with device"
    device = found["device-qingcloud-cni"]
    assert device.keys() == {"match-device", "managed"}
    assert device["managed"] == "0"
    assert [name for name in POOL if not is_unmanaged_by_networkmanager(device["match-device"], name)] == []
    assert not is_unmanaged_by_networkmanager(device["match-device"], PRIMARY)


def test_networkd_manages_the_hosts_own_nic_alone() -> None:
    """systemd.network(5): all of [Match] must hold; a leading "!" inverts the whole list."""
    file = NETWORKD / "00-qingcloud-cni.network"
    found = sections(file)
    assert found.keys() == {"Match", "Link"}
    assert found["Link"] == {"Unmanaged": "yes"}
    match = found["Match"]
    assert match == {"Type": "ether", "Kind": "!*", "Name": match["Name"]}
    assert match["Name"].startswith("!")
    kept = match["Name"].removeprefix("!").split()
    assert not [name for name in POOL if any(fnmatchcase(name, glob) for glob in kept)]
    assert PRIMARY in kept
    assert file.name < "10-netplan-all-en.network", "the first file that matches counts"


def test_networkd_keeps_foreign_routes_and_rules() -> None:
    found = sections(NETWORKD / "networkd.conf.d" / "qingcloud-cni.conf")
    assert found == {"Network": {"ManageForeignRoutes": "no", "ManageForeignRoutingPolicyRules": "no"}}


@pytest.mark.parametrize("directory", [NETWORKMANAGER, NETWORKD], ids=lambda d: d.name)
def test_the_readme_names_every_file_where_it_goes_and_how_to_verify(directory: Path) -> None:
    readme = directory / "README.md"
    text = readme.read_text(encoding="utf-8")
    files = [path for path in directory.rglob("*") if path.is_file() and path != readme]
    assert set(links(readme)) == {str(path.relative_to(directory)) for path in files}
    for file in files:
        target = next(word for word in file.read_text().split() if word.startswith("/etc/")).rstrip(".;")
        assert f"`{target}`" in text, (file.name, target)
    assert "Verify" in text
    assert anchors(readme)
