"""The worker process that calls the function of a tool: JSON lines in, JSON lines out; see ``task_worker``."""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from stepladder.data.grading.task_worker import Reply, end_at, private_streams, send, told
from stepladder.plugs import load_plug


def call(tool: Callable[..., Any], arguments: dict[str, Any]) -> Reply:
    """Call a function and return the reply: its text, its error, or what is wrong with it under ``fault``."""
    try:
        given = tool(**arguments)
    # A tool that fails is an observation.
    except (Exception, SystemExit) as error:
        return {"text": told(error), "failed": True}
    if given is None or isinstance(given, str):
        return {"text": given, "failed": False}
    shown = repr(given)
    return {"fault": f"got {shown if len(shown) <= 80 else shown[:77] + '...'} of type {type(given).__name__}"}


def main(name: str, settings: str) -> None:
    """Reply to one request per line until the input ends."""
    requests, replies = private_streams()
    takes = json.loads(settings)["takes"]
    tool = load_plug(name, setting="search.tool")
    own = os.getpid()
    send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        end_at(request["deadline_s"])
        reply = call(tool, {each: request[each] for each in takes})
        if os.getpid() != own:
            # The function forked, and this is the copy.
            os._exit(0)
        end_at(0)
        send(replies, reply)
    # What the function started must not outlive the command.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
