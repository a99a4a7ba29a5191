"""Tools of a user's own: a function of a step, called in processes that can be killed."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepladder.data.grading.workers import TIMEOUT, Message, WorkerCommand, WorkerPool
from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.interfaces import Observation, ToolCall
from stepladder.plugs import load_plug

ARGUMENTS = ("step", "solution", "question")
"""Arguments that the function of a tool may take, by name: the step, everything before it, and the question."""
_SETTING = "search.tool"
_WORKER = Path(__file__).with_name("tool_worker.py")
_MANY = 32
"""Calls after which a function that raised an exception in each of them counts as broken."""


def load_tool(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Import a tool, and return it with the arguments that it takes; nothing is called.

    Raises:
        ConfigError: If there is no such function, or it does not take ``step`` or ``solution``.
    """
    tool = load_plug(name, setting=_SETTING)
    try:
        parameters = inspect.signature(tool).parameters
    except (TypeError, ValueError):
        parameters = {}
    takes = tuple(each for each in ARGUMENTS if each in parameters)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [name for name, one in parameters.items() if one.default is one.empty and one.kind not in optional]
    if not {"step", "solution"} & set(takes) or set(required) - set(takes):
        raise ConfigError(
            f"{_SETTING}: must take step or solution, perhaps question, and nothing else without a default: got {name!r} of "
            f"{', '.join(required) or 'unknown arguments'} -- rename its arguments"
        )
    return tool, takes


class FunctionTool:
    """A ``Tool`` that calls a function in processes that can be killed.

    The function returns the observation, or None after a step that asks for nothing. What it prints goes nowhere. An exception, a crash or
    a call that takes too long is an observation that says so.
    """

    def __init__(self, name: str, *, deadline_s: float = 5.0, num_workers: int = 1) -> None:
        """Prepare to call a function; the first call starts a process.

        Args:
            name: Of the function, as for ``stepladder.plugs``.
            deadline_s: CPU seconds for one call, > 0; a call that waits has 20 times as many seconds.
            num_workers: Processes, >= 1.

        Raises:
            ConfigError: As ``load_tool``.
        """
        _, self._takes = load_tool(name)
        command = WorkerCommand(
            script=_WORKER, arguments=(name, json.dumps({"takes": self._takes})), check=f"import {name.partition(':')[0]}"
        )
        self._name, self._deadline_s, self._pool = name, deadline_s, WorkerPool(command, num_workers, deadline_s=deadline_s)
        self._calls = self._raised = 0

    def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
        """Return what the function returns for every step.

        Raises:
            DataFormatError: If it returns something else than text or None.
            BackendError: If a process does not start, or the function raised an exception in every one of many calls.
        """
        known = [{"step": call.step, "solution": call.solution, "question": call.question} for call in calls]
        replies = self._pool.ask([{name: arguments[name] for name in self._takes} for arguments in known])
        observations = [self._observation(reply) for reply in replies]
        self._calls += len(replies)
        self._raised += sum(bool(reply.get("failed")) for reply in replies)
        if self._raised == self._calls >= _MANY:
            last = next(found.text for found in reversed(observations) if found is not None)
            raise BackendError(
                f"{_SETTING}: {self._name!r} must return observations: it raised an exception in each of the first {self._calls} calls, "
                f"the last time {last.removeprefix('error: ')} -- correct it, and return a message for steps that it cannot read"
            )
        return observations

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def _observation(self, reply: Message) -> Observation | None:
        if "fault" in reply:
            raise DataFormatError(f"{_SETTING}: {self._name!r} must return text or None: {reply['fault']} -- correct it")
        if "text" not in reply:
            late = f"no result within {self._deadline_s:g} seconds"
            return Observation(f"error: {late if reply['reason'] == TIMEOUT else 'the process ended'}", failed=True)
        if reply["failed"]:
            return Observation(f"error: {reply['text']}", failed=True)
        return Observation(reply["text"]) if reply["text"] else None
