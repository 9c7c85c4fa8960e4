"""The installed plugin, given anything: a result or one error object, and nothing else."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni.plugin_inputs import ENVIRONMENTS, check_answer, documents


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("anything")


@pytest.mark.cni(78)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), environment=ENVIRONMENTS)
def test_whatever_comes_ends_in_one_document(
    plugin_file: Path, place: Path, data: st.DataObject, environment: dict[bytes, bytes]
) -> None:
    addresses = st.just(f"unix://{place}/agent.sock")
    stdin = data.draw(documents(addresses, st.just(str(place / "spool"))))
    done = subprocess.run([plugin_file], env=environment, input=stdin, capture_output=True, timeout=30, check=False)
    check_answer(environment[b"CNI_COMMAND"], done.returncode, done.stdout, done.stderr)
