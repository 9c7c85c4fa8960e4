"""The recipes of CONTRIBUTING.md, followed in a copy of this checkout: lint and the tests of the pages accept it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pages import ROOT, page

SOURCE = "src/qingcloud_cni"
COPIED = ("src", "tests", "tools", "docs", "bench", "examples", "deploy")
END = "<end>"  # of the file


@dataclass(frozen=True, slots=True)
class Edit:
    """*new* text is put before the *anchor*, which the file has once."""

    file: str  # below src/qingcloud_cni
    anchor: str
    new: str


RECIPES: dict[str, tuple[Edit, ...]] = {
    "setting": (
        Edit(
            "agent/settings/settings.py", ")  # fmt: skip\nBY_KEY", '    Setting("sample", WHOLE, 1, "an example"),\n'
        ),
        Edit("agent/settings/settings.py", "\n    @property\n    def pool(self)", "    sample: int\n"),
    ),
    "event": (
        Edit("core/events.py", "        # ADD, DEL and GC\n", '        "agent.sampled": _warn("An example."),\n'),
        Edit("agent/agent.py", 'self.context.note("agent.ready")', 'self.context.note("agent.sampled")\n        '),
    ),
    "metric": (
        Edit(
            "agent/agent.py",
            "\n\nclass Agent:",
            '    sampled: Annotated[int, counter("qingagent_store_changes_total", "Changes.")] = 0\n',
        ),
        Edit("agent/agent.py", "        )\n\n    @property\n    def last_cloud_error", "            sampled=1,\n"),
    ),
    "periodic task": (
        Edit(
            "agent/agent.py",
            "\n    @classmethod\n    @asynccontextmanager",
            "        self.sample = TaskRecord(HOUR)\n",
        ),
        Edit(
            "agent/agent.py",
            f")  # fmt: skip\n{END}",
            '    PeriodicTask("sample", "every hour", "nothing", lambda agent: agent.sample),\n',
        ),
    ),
    "endpoint": (
        Edit(
            "agent/api/endpoints.py",
            '        ("get", "/v1/plan"): ',
            '        ("get", "/v1/sample"): _json("An example", lambda _api: 1, int),\n',
        ),
    ),
    "command": (
        Edit(
            "cli/qingagent.py",
            "def _seconds(",
            '@main.command(cls=SeedHelp, help="Show an example.")\ndef sample() -> None:\n    click.echo("1")\n\n\n',
        ),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_files_and_at_most_two_of_source(name: str) -> None:
    section = page("CONTRIBUTING.md").split(f"### Add a {name}\n".replace("a e", "an e"))[1].split("\n#")[0]
    files = {f"{SOURCE}/{edit.file}" for edit in RECIPES[name]}
    named = set(re.findall(rf"`({SOURCE}/[\w/]+\.py)`", section))
    assert files <= named
    assert len(files) <= 2


def test_what_the_recipes_add_is_accepted(tmp_path: Path) -> None:
    """All six at once: a copy and its checks take some seconds."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        shutil.copy(file, tmp_path)
    for edit in (edit for edits in RECIPES.values() for edit in edits):
        path = tmp_path / SOURCE / edit.file
        text = path.read_text() + END
        assert text.count(edit.anchor) == 1, edit
        path.write_text(text.replace(edit.anchor, edit.new + edit.anchor).removesuffix(END))
    run(tmp_path, "python", "-m", "tools.reference_tables")
    for check in (
        ("ruff", "check", "-q", "--no-cache"),
        ("ruff", "format", "--check", "-q", "--no-cache"),
        ("mypy", "--cache-dir", os.devnull, f"{SOURCE}/cli/qingagent.py"),
        ("lint-imports", "--no-cache"),
        ("pytest", "-q", "-p", "no:cacheprovider", "tests/docs/test_reference.py"),
    ):
        run(tmp_path, *check)
    for page_name, new in (
        ("configuration.md", "QINGAGENT_SAMPLE"),
        ("configuration.md", "`qingagent_store_changes_total` | counter"),
        ("configuration.md", "`GET /v1/sample`"),
        ("configuration.md", "`qingagent sample`"),
        ("operations.md", "`agent.sampled` | warn"),
        ("operations.md", "| sample | every hour"),
    ):
        assert new in (tmp_path / "docs" / page_name).read_text()


def run(directory: Path, program: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(directory / "src")}
    argv = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program}:\n{done.stdout}{done.stderr}"
