"""What commands print: nothing in it that a terminal obeys, whatever containers and cloud have for names."""

import ast
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.cli import history, show
from qingcloud_cni.core.text import CONTROL

CLI = Path(show.__file__).parent
TEXTS = st.text(st.characters(categories=None), max_size=20)


def printed(*calls: Any) -> str:
    with redirect_stdout(io.StringIO()) as output:
        for call in calls:
            call()
    return output.getvalue()


@given(TEXTS)
def test_nothing_that_a_terminal_obeys_is_printed(text: str) -> None:
    nic = {"nic_id": text, "state": text, "since": 0.0, "address": text, "vxnet_id": text, "attachment": text}
    attachment = dict.fromkeys(("container_id", "network", "ifname", "address", "nic_id", "netns"), text)
    task = {"name": text, "period": 1.0, "last_success": 0.0, "duration": 0.1, "next_run": 0.0, "failures": 0}
    event = {"seq": 1, "at": 0.0, "name": text, "nic_id": text, "subject": text, "job_id": "", "pod": text}
    output = printed(
        lambda: show.say(text),
        lambda: show.as_json({text: text}),
        lambda: show.as_nics([nic | {"claimant": "", "soil": text}, nic | {"claimant": text, "soil": ""}]),
        lambda: show.as_attachments([attachment | {"since": 0.0, "pod": {"namespace": text, "name": text}}]),
        lambda: show.as_tasks([task | {"all_failures": 1, "last_error": text}]),
        lambda: history.show_events(lambda _target: [event | {"detail": text}], {}, "table", follow=False),
    )
    assert not CONTROL.search(output.replace("\n", ""))


def test_say_prints_one_line() -> None:
    assert printed(lambda: show.say("a\nb\x1b[31m\u202e")) == "a\\nb\\x1b[31m\\u202e\n"


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_commands_print_by_show_alone(path: Path) -> None:
    """So that there is one place where texts are escaped."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    prints = {call for call in calls if call in {"print", "click.echo", "console.print", "sys.stdout.write"}}
    allowed = {"show": {"click.echo", "console.print"}, "qingcloud_sim": {"print"}}  # the latter prints JSON
    assert prints == allowed.get(path.stem, set())
