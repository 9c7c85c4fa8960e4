"""What the tests of the API share."""

import pytest

from machines.hosts import Host, NewHost


@pytest.fixture(scope="module")
def stranger(lasting_host: NewHost) -> Host:
    """A host without an agent."""
    return lasting_host()
