"""The pages list every setting, command, endpoint, metric, event and state, and no other."""

import ast
import re
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from pages import ROOT, column, page, source_trees, table
from qingcloud_cni.agent.agent import TASKS, AgentStatistics
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.base.logs import LINES
from qingcloud_cni.agent.base.phases import Phase
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.cli.qingagent import main
from qingcloud_cni.cloud import CallSeen
from qingcloud_cni.cloud.access import IGNORED, USED
from qingcloud_cni.cloud.calls import CallOutcome
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.cni.protocol import VERSIONS
from qingcloud_cni.core.drift.differences import DifferenceKind
from qingcloud_cni.core.errors import EXIT, WIRE
from qingcloud_cni.core.events import EVENTS
from qingcloud_cni.core.nics.changes import Snapshot
from qingcloud_cni.core.nics.model import Event, OpKind
from qingcloud_cni.core.nics.table import FOLLOWS, Table

CONFIGURATION = page("docs/configuration.md")
OPERATIONS = page("docs/operations.md")
ARCHITECTURE = page("docs/architecture.md")
NONE = "\u2013"  # an empty cell
NO_EVENTS = {"getLogger", "joinpath"}  # takes file names
EVENT_NAME = re.compile(r"[a-z][a-z-]*\.[a-z][a-z-]*")


def test_tables_of_what_the_program_knows_are_the_generated_ones() -> None:
    assert_generated("tools.reference_tables")
    assert column(CONFIGURATION, "Setting", "Environment variable") == [s.name for s in SETTINGS]


def test_conformance_page_is_the_generated_one_and_has_no_gap() -> None:
    """Also fails if a claim has neither test nor reason, or a test an unknown number."""
    assert_generated("tools.cni_conformance")


def test_list_of_earlier_defects_is_the_generated_one_and_has_no_gap() -> None:
    """Also fails if a defect has neither test nor reason, or a test an unknown key."""
    assert_generated("tools.defects_page")


def assert_generated(module: str) -> None:
    """The page is as *module* writes it."""
    argv = [sys.executable, "-m", module, "--check"]
    checked = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_no_other_command_is_described() -> None:
    named = {text for name in ("README.md", "docs/configuration.md", "docs/operations.md")
             for text in re.findall(r"`(?:# )?qingagent ([a-z-]+)", page(name))}  # fmt: skip
    assert named <= set(main.commands)


def test_every_metric_is_described_with_its_labels() -> None:
    metrics = Metrics()
    metrics.event(Event(0.0, "agent.ready"))
    metrics.cloud_call(CallSeen("AttachNics", Urgency.WAITING, CallOutcome.OK, 0.1, 0))
    metrics.cni_request("ADD", 0, 0.1, dict.fromkeys(Phase, 0.02))
    metrics.refused("host")
    times = {"pool": 1.0}
    statistics = AgentStatistics(
        Table(Snapshot()).statistics(), 0, 0, 0.0, times, times, times, drift={"twice": 1}, spooled=0, waiting=0,
        ready=True, calls_waiting={"waiting": 1}, spending=Budget(1, 0.0).spending((), 0.0),
    )  # fmt: skip
    described = {
        cells[0].strip("`"): (cells[1], set(re.findall(r"`(\w+)`", cells[2])))
        for cells in table(CONFIGURATION, "Metric", "Kind", "Labels")
    }
    families = list(text_string_to_metric_families(metrics.render(statistics).decode()))
    exposed: dict[str, tuple[str, set[str]]] = {}
    for family in families:
        if family.name.endswith("_created"):  # the client library's own
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exposed[name] = family.type, {label for sample in family.samples for label in sample.labels} - {"le"}
    assert described == exposed
    assert all(f"`{word}`" in CONFIGURATION for word in (*CallOutcome, *Phase, *(u.word for u in Urgency)))


def test_every_cni_code_is_described_with_its_status() -> None:
    described = {int(cells[0]): cells[1] for cells in table(CONFIGURATION, "Code", "HTTP status")}
    agents = {code: str(status) for code, status in WIRE.values()}
    plugins = {
        call.args[0].value
        for tree in source_trees("plugin")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _name(call.func) in {"CniError", "NoAnswer"}
        and isinstance(call.args[0], ast.Constant)
    }  # fmt: skip
    assert described == {code: NONE for code in plugins if isinstance(code, int)} | agents


def test_every_exit_status_is_described() -> None:
    described = {int(cells[0]) for cells in table(CONFIGURATION, "Exit status", "Meaning")}
    assert described == {0, *EXIT.values()}


def test_every_key_of_the_access_file_is_described() -> None:
    keys = {cells[0].strip("`") for cells in table(CONFIGURATION, "Key", "Default", "Meaning")}
    assert keys >= USED
    ignored = CONFIGURATION.split("known and ignored")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", ignored)) == IGNORED


def test_every_key_of_a_network_configuration_is_described() -> None:
    rows = " ".join(cells[0] + cells[2] for cells in table(CONFIGURATION, "Key", "Default", "Meaning"))
    described = {key.lower() for text in re.findall(r"`([\w.]+)`", rows) for key in text.split(".")}
    read = {
        call.args[1].value.lower()
        for tree in source_trees("plugin", "core")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _name(call.func) in {"pick", "text_arg", "flag"}
        and len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str)
    }  # fmt: skip
    assert {"bindaddr", "tokenfile", "ipmasq", "disablegc"} <= read
    assert read - {"args"} <= described
    assert {"dst", "gw", "nameservers", "domain", "search", "options"} <= described
    versions = next(
        cells[2] for cells in table(CONFIGURATION, "Key", "Default", "Meaning") if "cniVersion" in cells[0]
    )
    assert all(version in versions for version in VERSIONS)


def test_every_event_is_in_the_table_and_no_other() -> None:
    recorded, logged = _event_names()
    assert set(column(OPERATIONS, "Event", "Level")) == set(EVENTS) == recorded
    assert set(column(OPERATIONS, "Log line", "Level")) == set(LINES) == logged


def test_states_and_what_follows_them_are_described() -> None:
    described = {
        cells[0].strip("`"): set(cells[2].split(", "))
        for cells in table(ARCHITECTURE, "State", "Where its link is", "Followed by")
    }
    assert described == {state.value: {s.value for s in after} for state, after in FOLLOWS.items()}


def test_every_kind_of_difference_is_described() -> None:
    described = [cells[0].strip("`") for cells in table(OPERATIONS, "Kind", "What was seen", "Remedy")]
    assert sorted(described) == sorted(DifferenceKind)
    advised = " ".join(cells[0] for cells in table(OPERATIONS, "Kind", "What to do"))
    assert set(re.findall(r"`([\w-]+)`", advised)) <= set(DifferenceKind)


def test_every_periodic_task_is_described() -> None:
    assert column(OPERATIONS, "Task", "When", "Does") == [task.name for task in TASKS]
    calls = [n for tree in source_trees("agent") for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert sum(_name(call.func) == "TaskRecord" for call in calls) == len(TASKS), "a record is in no row of TASKS"


def test_quoted_messages_are_the_programs_own() -> None:
    said = " ".join(_texts("agent", "core", "cli", "cloud", "kernel", "store", "plugin"))
    quotes = [cells[0] for cells in table(OPERATIONS, "The message says")]
    pieces = [piece for quote in quotes for text in re.findall(r"`([^`]+)`", quote) for piece in text.split("…")]
    unsaid = [p for p in pieces if len(p.strip(" :()")) > 3 and p.strip() not in said and "(" not in p]
    assert len(pieces) > 30
    assert not unsaid


def _event_names() -> tuple[set[str], set[str]]:
    """Every text shaped as an event's name that is given to a function: those recorded, those only logged."""
    recorded: set[str] = set()
    logged: set[str] = set()
    for tree in source_trees("agent", "core", "cli"):
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (function := _name(call.func)) not in NO_EVENTS:
                names = logged if function in {"write", "exception", "RateLimited"} else recorded
                arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
                names |= {text for argument in arguments for text in _written(argument) if EVENT_NAME.fullmatch(text)}
    return recorded, logged


def _written(argument: ast.expr) -> list[str]:
    """The text of a literal; of `f"{intent.kind}.intended"` one for each kind."""
    match argument:
        case ast.Constant(str(text)):
            return [text]
        case ast.JoinedStr([ast.FormattedValue(ast.Attribute(attr="kind")), ast.Constant(str(end))]):
            return [f"{kind}{end}" for kind in OpKind]
        case _:
            return []


def _texts(*folders: str) -> list[str]:
    """All texts in the source; formatted ones in the pieces they have."""
    nodes = [node for tree in source_trees(*folders) for node in ast.walk(tree)]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
