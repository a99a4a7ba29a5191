"""The worker process that calls the function of a task: JSON lines in, JSON lines out.

It is run as a script in a fresh interpreter, with the name of the function and, as JSON, its options and the names of the arguments that it
takes. The function may print, hang, crash, or start processes of its own. Its output goes nowhere, and the parent ends the worker's group.
A kernel timer of CPU time, and one of wall time for a worker whose parent is gone, end it at the deadline.
"""

import json
import numbers
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

from stepladder.errors import StepladderError
from stepladder.plugs import load_plug
from stepladder.types import Verdict

_WALL_FACTOR = 25.0
"""Wall seconds for each CPU second of the deadline; the parent gives up a little earlier."""
Reply = dict[str, Any]


def as_verdict(given: Any, *, passing: float) -> Verdict | None:
    """Return the verdict that a function's return value stands for; None if it stands for none.

    Args:
        given: A truth value, a number in [0, 1], a ``Verdict``, or a pair of one of the first two and the reason.
        passing: The smallest number that counts as right, in (0, 1].
    """
    if isinstance(given, Verdict):
        return given
    worth: Any = given
    reason = None
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
        worth, reason = given
    if type(worth).__module__ == "numpy" and worth.shape == ():
        worth = worth.item()
    if isinstance(worth, bool):
        return Verdict(correct=worth, reason=reason or ("accepted" if worth else "rejected"))
    if not isinstance(worth, numbers.Real) or not 0.0 <= float(worth) <= 1.0:
        return None
    credit = float(worth)
    correct = credit >= passing
    words = "accepted" if correct else "partial credit" if credit > 0 else "rejected"
    return Verdict(correct=correct, reason=reason or words, credit=credit)


def judge(grade: Callable[..., Any], arguments: dict[str, Any], *, passing: float) -> Reply:
    """Call a function and return the reply: a verdict, or what is wrong with the function under ``fault``."""
    try:
        given = grade(**arguments)
    # A verifier that stumbles over an odd answer has judged it; how often that happens is counted by its reason.
    except (Exception, SystemExit) as error:
        return {"correct": False, "reason": f"raised {told(error)}"}
    verdict = as_verdict(given, passing=passing)
    if verdict is None:
        shown = repr(given)
        return {"fault": f"got {shown if len(shown) <= 80 else shown[:77] + '...'} of type {type(given).__name__}"}
    return {"correct": verdict.correct, "reason": verdict.reason, "credit": verdict.credit}


def main(name: str, settings: str) -> None:
    """Reply to one request per line until the input ends."""
    requests, replies = private_streams()
    stated = json.loads(settings)
    grade = load_plug(name, setting="problems.verifier")
    key = getattr(grade, "answer_key", None)
    own = os.getpid()
    send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        end_at(request["deadline_s"])
        if "key" in request:
            reply = _key(key, request["key"])
        else:
            arguments = {each: request[each] for each in stated["takes"]} | stated["options"]
            reply = judge(grade, arguments, passing=stated["passing"])
        if os.getpid() != own:
            # The function forked, and this is the copy.
            os._exit(0)
        end_at(0)
        send(replies, reply)
    # What the function started must not outlive the command.
    os.killpg(0, signal.SIGKILL)


def end_at(cpu_s: float) -> None:
    """End this process after so many CPU seconds, or many more wall seconds; 0 takes the timers off."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, cpu_s * _WALL_FACTOR)


def _key(key: Callable[[str], Any] | None, answer: str) -> Reply:
    try:
        return {"key": None if key is None else str(key(answer))}
    # As for verdicts: the default key is used instead.
    except Exception:
        return {"key": None}


def told(error: BaseException) -> str:
    """Return an exception as a phrase: its type, the first line of its message, and the line in the function's own file.

    Frames of the libraries that the function calls do not count: their line numbers would be looked for in the function's file.
    """
    # The first frame is the worker's call of the function, which alone is left if the arguments do not fit.
    frames = traceback.extract_tb(error.__traceback__)[1:]
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == frames[0].filename), None)
    first = (str(error).splitlines() or ["no reason given"])[0]
    place = "" if isinstance(error, StepladderError) or line is None else f" (line {line})"
    return f"{type(error).__name__}: {first[:120]}{place}"


def private_streams() -> tuple[IO[str], IO[str]]:
    """Reserve standard input and output for the parent and return them; the function reads nothing, and prints to standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, encoding="utf-8"), os.fdopen(replies, "w", encoding="utf-8")


def send(replies: IO[str], reply: Reply) -> None:
    """Send a reply to the parent."""
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
