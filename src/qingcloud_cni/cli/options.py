"""Flags made from the table of settings, and help in the layout of the earlier agent."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qingcloud_cni.agent.settings.config_file import find_config, read_config
from qingcloud_cni.agent.settings.resolution import Given, Resolved, resolve
from qingcloud_cni.agent.settings.settings import BY_KEY, SETTINGS, Setting
from qingcloud_cni.agent.settings.values import FLAG, TEXTS

if TYPE_CHECKING:
    from qingcloud_cni.cloud import Access

_GLOBAL = ("config", "loglevel")
_CONFIG_HELP = "config file (default is ./QingAgent.yaml)"


class _NamedHelp(click.Command):
    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = f"help for {ctx.info_name}"
        return option


class SeedHelp(_NamedHelp):
    """Shows help as "Usage", "Flags" and "Global Flags"."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = "".join(f" {p.make_metavar(ctx)}" for p in self.params if isinstance(p, click.Argument))
        _write_head(self, formatter, f"{ctx.command_path}{arguments} [flags]")
        _write_all_flags(self, ctx, formatter)


class SeedGroupHelp(_NamedHelp, click.Group):
    """The same for a command that has commands."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_head(self, formatter, f"{ctx.command_path} [command]")
        formatter.write("\nAvailable Commands:\n")
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            formatter.write(f"  {name.ljust(width)}   {self.commands[name].help}\n")
        _write_all_flags(self, ctx, formatter)
        formatter.write(f'\nUse "{ctx.command_path} [command] --help" for more about a command.\n')


def _write_head(command: click.Command, formatter: click.HelpFormatter, usage: str) -> None:
    if command.help:
        formatter.write(f"{command.help}\n\n")
    formatter.write(f"Usage:\n  {usage}\n")


def _write_all_flags(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    options = [p for p in command.get_params(ctx) if isinstance(p, click.Option)]
    _write_flags(formatter, "Flags", [o for o in options if o.name not in _GLOBAL])
    _write_flags(formatter, "Global Flags", [o for o in options if o.name in _GLOBAL])


def _write_flags(formatter: click.HelpFormatter, title: str, options: list[click.Option]) -> None:
    if not options:
        return
    formatter.write(f"\n{title}:\n")
    ordered = sorted(options, key=lambda o: next(opt for opt in o.opts if opt.startswith("--")))
    records = [record for o in ordered if (record := _record(o)) is not None]
    width = max(len(left) for left, _ in records)
    for left, right in records:
        formatter.write(f"  {left.ljust(width)}   {right}\n")


def _record(option: click.Option) -> tuple[str, str] | None:
    if option.hidden:
        return None
    short = next((o for o in option.opts if not o.startswith("--")), "")
    long = next((o for o in option.opts if o.startswith("--")), "")
    metavar = option.type.name if option.metavar is None else option.metavar
    metavar = "" if option.is_flag or not metavar else f" {metavar}"
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
    if setting.kind is FLAG:  # `--name`, `--name=false` and `--name false` all work
        return click.Option(decls, is_flag=False, flag_value="true", metavar="", help=_help(setting))
    return click.Option(decls, metavar=setting.kind.metavar, multiple=setting.kind is TEXTS, help=_help(setting))


def global_options() -> list[click.Option]:
    """`--config` and `--loglevel`: accepted before the subcommand as well as after it."""
    return [click.Option(["--config", "config"], metavar="string", help=_CONFIG_HELP), _option(BY_KEY["loglevel"])]


def with_settings(*names: str) -> Callable[[click.Command], click.Command]:
    """Add the flags of these settings, or of all, and the global ones."""
    chosen = [BY_KEY[n.lower()] for n in names] if names else list(SETTINGS)

    def add(command: click.Command) -> click.Command:
        options = [_option(s) for s in chosen if s.name not in _GLOBAL]
        command.params += [*options, *global_options()]
        return command

    return add


def resolved(*, access_zone: Given | None = None) -> Resolved:
    """The settings of this command: flags, environment, config file, *access_zone*, defaults."""
    import os

    given: dict[str, Any] = {}
    level: click.Context | None = click.get_current_context()
    while level is not None:  # a flag after the command wins over one before it
        given = {k: v for k, v in level.params.items() if v is not None and v != ()} | given
        level = level.parent
    config = given.pop("config", None)
    path = find_config() if config is None else Path(config)
    file = read_config(path) if path else {}
    flags = {s.name.lower(): _joined(given[s.field]) for s in SETTINGS if s.field in given}
    return resolve(flags, os.environ, file, str(path.absolute()) if path else "", access_zone=access_zone)


def _joined(value: object) -> object:
    """A repeated flag as one value."""
    return ",".join(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class CloudConfig:
    """Settings and access file."""

    resolved: Resolved
    access: "Access"


def cloud_config() -> CloudConfig:
    """StartRefused if settings or access file are invalid."""
    from qingcloud_cni.cloud import load_access

    settings = resolved().settings
    path = settings.qyaccessfilepath
    access = load_access(path, allow_readable=settings.allow_readable_access_file)
    merged = resolved(access_zone=Given(access.zone, str(path)) if access.zone else None)
    return CloudConfig(merged, replace(access, zone=merged.settings.zone))


@dataclass(frozen=True, slots=True)
class AgentConfig(CloudConfig):
    """All that an agent needs to start."""

    instance_id: str


def agent_config() -> AgentConfig:
    """StartRefused if settings, access file, vxnet ids or instance id are invalid."""
    from qingcloud_cni.agent.settings.resolution import check_vxnets, known_instance_id

    found = cloud_config()
    check_vxnets(found.resolved)
    return AgentConfig(found.resolved, found.access, known_instance_id(found.resolved))
