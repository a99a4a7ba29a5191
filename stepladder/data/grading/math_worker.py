"""The worker process that runs math-verify: JSON lines in, JSON lines out.

It is run as a script in a fresh interpreter and imports nothing of stepladder. Symbolic algebra may not come back (``9**9**9**9``) and may
hold the interpreter lock while it computes, so no thread or Python signal handler here could stop it. The kernel does: a timer of CPU time
whose signal keeps its default action, which is to end the process. That also covers a parent that was killed: a busy worker outlives it by
the deadline at most, an idle one sees the end of its input at once.

CPU time, not wall time, so that the same answers run out of time on a loaded machine as on an idle one.
"""

import json
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import IO

_MEMORY_BYTES = 4 << 30
"""Cap on the address space; numbers that would need more end as unreadable instead of as a swapping machine."""
_FLOAT_DECIMALS = 12
"""Floats that agree in so many decimals are equal: room for rounding in the computation, none for 0.333333 in place of 1/3."""


def grade(answer: str, reference: str) -> tuple[bool, str]:
    """Return whether math-verify finds an answer equivalent to the reference, and why; may never return.

    Both are texts with formulas between dollar signs.
    """
    from math_verify import parse, verify

    # Its own time limits use SIGALRM and a Python handler, which would not stop a computation in C.
    parsed_reference = parse(reference, parsing_timeout=0)
    parsed_answer = parse(answer, parsing_timeout=0)
    if not parsed_answer or not parsed_reference:
        return False, "unreadable"
    correct = verify(parsed_reference, parsed_answer, float_rounding=_FLOAT_DECIMALS, timeout_seconds=0)
    return correct, "equivalent" if correct else "differs"


def main() -> None:
    """Serve requests ``{"answer", "reference", "deadline_s"}`` with replies ``{"correct", "reason"}`` until the input ends."""
    # A Ctrl-C reaches every process of the terminal; what it means is decided by the parent alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # not every system lets an address space be capped
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES), hard))
    logging.disable(logging.CRITICAL)
    grade("$1$", "$1$")  # the first call loads and builds everything; it is no part of any deadline
    _send(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["deadline_s"])
        correct, reason = grade(request["answer"], request["reference"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, {"correct": correct, "reason": reason})


def _private_stdout() -> IO[str]:
    """Return standard output for replies alone, and send whatever libraries print to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def _send(replies: IO[str], reply: dict[str, object]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
