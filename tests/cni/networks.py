"""Network configurations as libcni reads them: lists, single plugins, folders of plugins. For tests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NEWEST = "1.1.0"


class Failed(Exception):
    """What libcni returns to the runtime instead of a result; *code* is the plugin's, 0 where it gave none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code

    def wrapped(self, words: str) -> "Failed":
        return Failed(f"{words}: {self}", self.code)


@dataclass(frozen=True)
class Network:
    """A list of plugins; *source* is what the cache keeps of it."""

    name: str
    version: str  # "" where none is given
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool
    disable_gc: bool
    source: bytes

    def allows(self, version: str) -> bool:
        """Whether what came with *version* of the specification may be used."""
        return number(self.version) >= number(version)


def parse(source: bytes) -> Network:
    """A list (`.conflist`), or a single plugin (`.conf`, `.json`), which becomes a list of one."""
    document = read_json(source, "configuration list")
    if "plugins" not in document and "type" in document:
        document = {key: document.get(key, "") for key in ("name", "cniVersion")} | {"plugins": [document]}
        source = json.dumps(document).encode()
    if not isinstance(document.get("name"), str):
        raise Failed("error parsing configuration list: no name")
    plugins = document.get("plugins", [])
    if "plugins" in document and (not isinstance(plugins, list) or not plugins):
        raise Failed("error parsing configuration list: no plugins in list")
    if "plugins" not in document and _flag(document, "loadOnlyInlinedPlugins"):
        raise Failed("error parsing configuration list: `loadOnlyInlinedPlugins` is true, and no 'plugins' key")
    return Network(
        document["name"],
        _version(document),
        tuple(_plugin(plugin) for plugin in plugins),
        _flag(document, "disableCheck"),
        _flag(document, "disableGC"),
        source,
    )


def load(path: Path) -> Network:
    """As `parse`; the plugins of a list may also stand in a folder beside it that has the network's name."""
    source = path.read_bytes()
    network = parse(source)
    if path.suffix != ".conflist":
        return network
    is_whole = _flag(read_json(source, "configuration list"), "loadOnlyInlinedPlugins")
    files = () if is_whole else sorted((path.parent / network.name).glob("*.conf"))
    more = tuple(_plugin(read_json(file.read_bytes(), "configuration")) for file in files)
    if not (*network.plugins, *more):
        raise Failed("no plugin configs found")
    return replace(network, plugins=(*network.plugins, *more))


def read_json(source: bytes, what: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"invalid character {name[0]!r}")

    try:
        document = json.loads(source, parse_constant=refuse)
    except ValueError as err:
        raise Failed(f"error parsing {what}: {err}") from None
    if not isinstance(document, dict):
        raise Failed(f"error parsing {what}: it is no object")
    return document


def _plugin(document: object) -> Mapping[str, Any]:
    if not isinstance(document, dict) or not document.get("type"):
        raise Failed("error parsing configuration: missing 'type'")
    return document


def _flag(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise Failed(f"error parsing configuration list: invalid value {value!r} for {key}")


def _version(document: Mapping[str, Any]) -> str:
    """The newest that both sides know, of `cniVersions` and `cniVersion` together."""
    version = document.get("cniVersion", "")
    if not isinstance(version, str):
        raise Failed("error parsing configuration list: invalid cniVersion type")
    given = document.get("cniVersions", [])
    known = [v for v in (*given, version) if v and number(v) <= number(NEWEST)]
    return max(known, key=number) if given and known else version


def number(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (version or "0.1.0").split("."))
    except ValueError:
        raise Failed(f"failed to convert version {version!r}") from None
