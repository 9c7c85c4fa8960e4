"""Flags made from the agent's table of settings, and a help page in the seed's layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qingcloud_cni.agent.config_file import find_config, read_config
from qingcloud_cni.agent.settings import BY_KEY, SETTINGS, Resolved, Setting, resolve
from qingcloud_cni.agent.values import FLAG, TEXTS

_GLOBAL = ("config", "loglevel")
_CONFIG_HELP = "config file (default is ./QingAgent.yaml)"


class SeedHelp(click.Command):
    """Shows help as "Usage", "Flags" and "Global Flags"."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.help:
            formatter.write(f"{self.help}\n\n")
        formatter.write("Usage:\n")
        arguments = "".join(f" {p.make_metavar(ctx)}" for p in self.params if isinstance(p, click.Argument))
        formatter.write(f"  {ctx.command_path}{arguments} [flags]\n")
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        _write_flags(formatter, "Flags", [o for o in options if o.name not in _GLOBAL])
        _write_flags(formatter, "Global Flags", [o for o in options if o.name in _GLOBAL])

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = f"help for {ctx.info_name}"
        return option


def _write_flags(formatter: click.HelpFormatter, title: str, options: list[click.Option]) -> None:
    if not options:
        return
    formatter.write(f"\n{title}:\n")
    records = [record for o in options if (record := _record(o)) is not None]
    width = max(len(left) for left, _ in records)
    for left, right in records:
        formatter.write(f"  {left.ljust(width)}   {right}\n")


def _record(option: click.Option) -> tuple[str, str] | None:
    if option.hidden:
        return None
    short = next((o for o in option.opts if not o.startswith("--")), "")
    long = next((o for o in option.opts if o.startswith("--")), "")
    metavar = "" if option.is_flag else f" {option.metavar or option.type.name}"
    return f"{short + ', ' if short else '    '}{long}{metavar}", option.help or ""


def _help(setting: Setting) -> str:
    if setting.default == "":
        return setting.help
    if setting.kind is TEXTS:
        return f"{setting.help} (default [{setting.default}])"
    if setting.kind is FLAG or isinstance(setting.default, int):
        return f"{setting.help} (default {setting.default})"
    return f'{setting.help} (default "{setting.default}")'


def _option(setting: Setting) -> click.Option:
    decls = [f"--{setting.name}", setting.field]
    if setting.kind is FLAG:
        return click.Option(decls, is_flag=True, default=None, help=_help(setting))
    return click.Option(decls, metavar=setting.kind.metavar, multiple=setting.kind is TEXTS, help=_help(setting))


def global_options() -> list[click.Option]:
    """`--config` and `--loglevel`: accepted before the subcommand as well as after it."""
    return [click.Option(["--config", "config"], metavar="string", help=_CONFIG_HELP), _option(BY_KEY["loglevel"])]


def with_settings(*names: str) -> Callable[[click.Command], click.Command]:
    """Give a command the flags of these settings, or of all, and the global ones."""
    chosen = [BY_KEY[n.lower()] for n in names] if names else list(SETTINGS)

    def add(command: click.Command) -> click.Command:
        options = [_option(s) for s in chosen if s.name not in _GLOBAL]
        command.params += [*options, *global_options()]
        return command

    return add


def resolved(*, zone_of_access: str = "") -> Resolved:
    """The settings of this call: its flags, the environment, the config file, the defaults."""
    import os

    ctx = click.get_current_context()
    given: dict[str, Any] = {}
    for level in (ctx.parent, ctx):
        given |= {k: v for k, v in (level.params if level else {}).items() if v is not None and v != ()}
    config = given.pop("config", None)
    path = Path(config) if config else find_config()
    file = read_config(path) if path else {}
    flags = {s.name.lower(): given[s.field] for s in SETTINGS if s.field in given}
    return resolve(flags, os.environ, file, str(path or ""), zone_of_access=zone_of_access)
