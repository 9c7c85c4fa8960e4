"""How a command fails: one sentence on stderr, and the exit status of the error."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

from qingcloud_cni.cli import show
from qingcloud_cni.core.errors import AgentError, exit_status

P = ParamSpec("P")


def reports_errors(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate a command: an expected error becomes a sentence, a bug keeps its traceback."""

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except AgentError as err:
                _fail(program, err)
            except BaseExceptionGroup as group:
                expected = _leaf(group)
                if expected is None:
                    raise
                _fail(program, expected)

        return run

    return decorate


def _leaf(group: BaseExceptionGroup[BaseException]) -> AgentError | None:
    """The first expected error of a task group; None if the group has any other."""
    matched, rest = group.split(AgentError)
    if rest is not None or matched is None:
        return None
    error: BaseException = matched
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, AgentError) else None


def _fail(program: str, err: AgentError) -> NoReturn:
    show.say(f"{program}: {err}", err=True)
    sys.exit(exit_status(err))
