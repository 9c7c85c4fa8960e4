"""Writes the tables in docs/ from what the program itself knows.

`python -m tools.reference_tables` rewrites the pages, `--check` says with its exit status whether that is needed.
"""

import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isinf
from pathlib import Path

import click

from qingcloud_cni.agent.agent import TASKS
from qingcloud_cni.agent.api.connections import ALLOWANCES
from qingcloud_cni.agent.api.endpoints import ENDPOINTS, Endpoint
from qingcloud_cni.agent.api.metrics import METRICS
from qingcloud_cni.agent.base.logs import LINES
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.cli.qingagent import main as main_command
from qingcloud_cni.core.cni.config_keys import KEYS
from qingcloud_cni.core.events import EVENTS, EventKind
from tools.generated import Part, main

GLOBAL = {"--config", "--loglevel"}
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NONE = "\u2013"


def table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def settings() -> Iterator[str]:
    rows = (
        (f"`{s.name}`", f"`{s.variable}`", s.kind.expected, f"`{s.default}`" if s.default != "" else NONE, s.help)
        for s in SETTINGS
    )
    return table(("Setting", "Environment variable", "Value", "Default", "Meaning"), rows)


def changed_settings() -> Iterator[str]:
    return table(("Setting", "A start with another value"), ((f"`{s.name}`", s.held) for s in SETTINGS if s.held))


def config_keys() -> Iterator[str]:
    rows = (
        (f"`{key.name}`", key.treatment.value, key.why + (f" (`{key.allowed}` is accepted)" if key.allowed else ""))
        for key in KEYS
        if key.why
    )
    return table(("Key", "Treatment", "Why"), rows)


def commands() -> Iterator[str]:
    return table(("Command", "What it does", "Flags"), _commands(main_command, "qingagent"))


def _commands(group: click.Group, before: str) -> Iterator[tuple[str, str, str]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before} {name}")
        else:
            yield f"`{before} {name}`", command.help or "", ", ".join(_flags(command))


def _flags(command: click.Command) -> Iterator[str]:
    """Without the global ones."""
    options = {o.opts[0]: o for o in command.params if isinstance(o, click.Option)}
    of_settings = {f"--{s.name}" for s in SETTINGS}
    has_all = of_settings - GLOBAL <= set(options)
    if has_all:
        yield "all settings"
    for flag, option in options.items():
        if flag not in GLOBAL and not (has_all and flag in of_settings):
            yield f"`{flag}`" + "".join(f" (`{short}`)" for short in option.opts[1:])


def endpoints() -> Iterator[str]:
    rows = (
        (f"`{method.upper()} {path}`", _open_to(e), f"{e.summary}. {e.details}".strip())
        for (method, path), e in ENDPOINTS.items()
    )
    return table(("Request", "Open to", "Answer"), rows)


def _open_to(endpoint: Endpoint) -> str:
    return "all" if endpoint.is_open else "this host" if endpoint.is_local else "root on this host"


def metrics() -> Iterator[str]:
    rows = ((f"`{m.name}`", m.kind.value, ", ".join(f"`{label}`" for label in m.labels), m.help) for m in METRICS)
    return table(("Metric", "Kind", "Labels", "Meaning"), rows)


def tasks() -> Iterator[str]:
    return table(("Task", "When", "Does"), ((task.name, task.when, task.does) for task in TASKS))


def rooms() -> Iterator[str]:
    """Of each package from top to bottom, as import-linter holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    yield "```"
    for contract in contracts:
        if contract["type"] == "layers":
            package = contract["containers"][0].removeprefix("qingcloud_cni.")
            yield f" {package:<8} {' ► '.join(layer.replace(' :', ',') for layer in contract['layers'])}"
    yield "```"


def peers() -> Iterator[str]:
    titles = ("Peer", "Connections at once", "Served per second", "Seconds for a request or an answer")
    return table(
        titles,
        (
            (f"`{peer}`: {a.who}", f"{a.connections}", NONE if isinf(a.rate) else f"{a.rate:g}", f"{a.patience:g}")
            for peer, a in ALLOWANCES.items()
        ),
    )


def events() -> Iterator[str]:
    return _kinds("Event", EVENTS)


def log_lines() -> Iterator[str]:
    return _kinds("Log line", LINES)


def _kinds(title: str, kinds: Mapping[str, EventKind]) -> Iterator[str]:
    return table((title, "Level", "Meaning"), ((f"`{name}`", k.level.value, k.meaning) for name, k in kinds.items()))


def _part(page: str, lines: Callable[[], Iterable[str]]) -> Part:
    return Part(DOCS / page, "tools.reference_tables", lines, lines.__name__.replace("_", " "))


PARTS = (
    _part("architecture.md", rooms),
    _part("configuration.md", settings),
    _part("configuration.md", changed_settings),
    _part("configuration.md", config_keys),
    _part("configuration.md", commands),
    _part("configuration.md", peers),
    _part("configuration.md", endpoints),
    _part("configuration.md", metrics),
    _part("operations.md", tasks),
    _part("operations.md", events),
    _part("operations.md", log_lines),
)

if __name__ == "__main__":
    sys.exit(main(*PARTS))
