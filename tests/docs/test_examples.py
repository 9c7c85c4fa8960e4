"""Examples in the pages parse, and the program's own readers accept them."""

import configparser
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pages import PAGES, ROOT, Block, anchors, blocks, links, page
from qingcloud_cni.agent.settings.config_file import read_config as read_config_file
from qingcloud_cni.agent.settings.config_formats import FORMATS
from qingcloud_cni.agent.settings.resolution import Resolved, check_vxnets, resolve
from qingcloud_cni.cloud import load_access
from qingcloud_cni.core.cni.network_config import read_config as read_network_config
from qingcloud_cni.store.database import Database

README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
KUBERNETES = ROOT / "docs" / "kubernetes.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "ini": configparser.ConfigParser(strict=False).read_string,
}
EXAMPLES = [block for path in PAGES for block in blocks(path) if block.language in PARSERS]


def example(path: Path, language: str, mark: str) -> str:
    (found,) = [b.text for b in blocks(path) if b.language == language and mark in b.text]
    return found


def settings_of(text: str, suffix: str, folder: Path) -> Resolved:
    file = folder / f"QingAgent{suffix}"
    file.write_text(text)
    return resolve({}, {}, read_config_file(file), str(file))


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda b: f"{b.page.name}-{b.language}")
def test_example_can_be_parsed(block: Block) -> None:
    assert PARSERS[block.language](block.text) is None or len(block.text) > 10


def test_there_are_examples_of_each_kind() -> None:
    assert {block.language for block in EXAMPLES} == set(PARSERS)


def test_config_file_of_the_readme_is_accepted(tmp_path: Path) -> None:
    resolved = settings_of(example(README, "yaml", "QingAgent.yaml"), ".yaml", tmp_path)
    check_vxnets(resolved)
    assert resolved.settings.qyaccessfilepath == Path("/etc/qingcloud/client.yaml")
    assert resolved.sources["iface"].endswith("QingAgent.yaml")


def test_all_formats_of_the_config_file_say_the_same(tmp_path: Path) -> None:
    languages = list(dict.fromkeys(suffix.removeprefix(".").replace("yml", "yaml") for suffix in FORMATS))
    found = {
        language: settings_of(example(CONFIGURATION, language, "RoundRotate"), f".{language}", tmp_path).settings
        for language in languages
    }
    first = found["yaml"]
    assert all(settings == first for settings in found.values())
    assert (first.vxnet, first.cooldown) == (("vxnet-1111aaa", "vxnet-2222bbb"), 130.0)


def test_access_file_of_the_readme_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    file.touch(mode=0o600)
    file.write_text(example(README, "yaml", "client.yaml\nqy_"))
    access = load_access(file, allow_readable=False)
    assert access.zone == "pek3a"
    assert not access.unknown


def test_network_configuration_of_the_readme_is_accepted() -> None:
    config = read_network_config(json.loads(example(README, "json", '"qingcni"')))
    assert (config.name, config.cni_version) == ("mynet", "0.3.1")
    assert config.services == ("10.96.0.0/12",)
    assert (config.is_gateway, config.ip_masq) == (True, True)


def test_network_configuration_of_the_readme_has_the_keys_of_the_contract() -> None:
    config: dict[str, Any] = json.loads(example(README, "json", '"qingcni"'))
    assert list(config) == ["cniVersion", "name", "type", "isGateway", "args", "ipMasq", "ipam"]
    assert config["args"] == {"BindAddr": "127.0.0.1:31080"}
    assert config["ipam"] == {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}


def test_files_for_kubernetes_are_those_of_the_readme() -> None:
    for language, mark in (("yaml", "QingAgent.yaml"), ("json", '"qingcni"')):
        assert example(KUBERNETES, language, mark) == example(README, language, mark)


def test_network_configuration_with_all_keys_is_accepted() -> None:
    config = read_network_config(json.loads(example(CONFIGURATION, "json", '"qingcni"')))
    assert config.dns.nameservers == ("10.96.0.10",)
    assert config.ip_masq


def test_queries_of_the_database_run(tmp_path: Path) -> None:
    Database(tmp_path / "agent.db").close()
    queries = re.findall(r'agent\.db" "([^"]+)"', OPERATIONS.read_text())
    assert len(queries) == 2
    connection = sqlite3.connect(tmp_path / "agent.db")
    try:
        assert [connection.execute(query).fetchall() for query in queries] == [[], []]
    finally:
        connection.close()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_have_targets(path: Path) -> None:
    broken = []
    for link in links(path):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, left = set[Path](), [README]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = [(path.parent / link.partition("#")[0]).resolve() for link in links(path) if "://" not in link]
        for target in targets:
            left += sorted(target.glob("*.md")) if target.is_dir() else [target] if target.suffix == ".md" else []
    assert set(PAGES) - seen <= {ROOT / "CHANGELOG.md"}


def test_no_page_names_paths_of_one_machine() -> None:
    assert not [p for p in PAGES if re.search(r"/(home|Users|work)/\w", p.read_text())]
    assert "/etc/qingcloud/client.yaml" in page("README.md")
