"""What `install_plugin` refuses, and that a refusal leaves nothing behind."""

import sys
from pathlib import Path

import pytest

from qingcloud_cni.cli.install_plugin import install_plugin
from qingcloud_cni.core.errors import StartRefused

BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_given_interpreter_stands_in_the_shebang(tmp_path: Path) -> None:
    path = install_plugin(tmp_path, BASE)
    assert path == tmp_path / "qingcni"
    assert path.read_text().split("\n", 1)[0] == f"#!{BASE} -IS"


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    old = tmp_path / "qingcni"
    old.write_text("old")
    with old.open() as still_open:
        install_plugin(tmp_path, BASE)
        assert still_open.read() == "old"
    assert old.read_text().startswith("#!")


def old_python(tmp_path: Path) -> Path:
    facts = (
        '{"version": [3, 9], "implementation": "cpython", "magic": "", "is_virtual": false, "base": "", "code": ""}'
    )
    return script(tmp_path / "old" / "python", f"#!/bin/sh\ncat >/dev/null\necho '{facts}'\n")


def virtual_python(tmp_path: Path) -> Path:
    link = tmp_path / "env" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(BASE)
    (tmp_path / "env" / "pyvenv.cfg").write_text(f"home = {BASE.parent}\n")
    return link


@pytest.mark.parametrize(
    ("python", "says"),
    [
        pytest.param(lambda _: Path("python3"), "absolute path", id="relative"),
        pytest.param(lambda tmp: tmp / "none", "not executable", id="absent"),
        pytest.param(lambda tmp: tmp, "not executable", id="directory"),
        pytest.param(lambda tmp: script(tmp / "a b" / "python", ""), "path has blanks", id="blank"),
        pytest.param(lambda tmp: script(tmp / ("d" * 120) / "python", ""), "more than 120 bytes", id="long"),
        pytest.param(
            lambda tmp: script(tmp / "sh", "#!/bin/sh\necho hello\n"), "not a Python interpreter", id="no-python"
        ),
        pytest.param(lambda tmp: script(tmp / "sh", "#!/bin/sh\nexit 1\n"), "not a Python interpreter", id="failing"),
        pytest.param(old_python, "is cpython 3.9; CPython 3.11 or later is required", id="old"),
        pytest.param(virtual_python, "belongs to a virtual environment", id="virtual"),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused(tmp_path: Path, python: object, says: str) -> None:
    assert callable(python)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    with pytest.raises(StartRefused, match=says):
        install_plugin(bin_dir, python(Path("/") / tmp_path))
    assert list(bin_dir.iterdir()) == []


def test_an_absent_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="not a directory; create it"):
        install_plugin(tmp_path / "none", BASE)


def test_a_directory_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qingcni").mkdir()
    with pytest.raises(StartRefused, match="qingcni: write failed"):
        install_plugin(tmp_path, BASE)
    assert [path.name for path in tmp_path.iterdir()] == ["qingcni"]
