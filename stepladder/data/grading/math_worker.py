"""The worker process that decides by algebra: JSON lines in, JSON lines out.

It is run as a script in a fresh interpreter. Numbers like ``9**9**9**9`` may not come back and may hold the interpreter lock while they are
computed, so no thread or Python signal handler here could stop it. The kernel does: a timer of CPU time whose signal keeps its default
action, which is to end the process. That also covers a parent that was killed: a busy worker outlives it by the deadline at most, an idle
one sees the end of its input at once.

CPU time, not wall time, so that the same answers run out of time on a loaded machine as on an idle one.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import IO

from stepladder.data.grading.compare import Question, decide
from stepladder.data.grading.forms import Expression
from stepladder.data.grading.normal import UndefinedError, normal_form
from stepladder.data.grading.numeric import proportional, same_value
from stepladder.data.grading.reader import read
from stepladder.data.grading.rules import MathOptions

_MEMORY_BYTES = 4 << 30
"""Cap on the address space; numbers that would need more end as a wrong answer instead of as a swapping machine."""
_LARGE_BITS, _LARGE_WORK = 1 << 23, 10_000_000


def algebra(question: Question, left: Expression, right: Expression) -> bool | None:
    """Answer a question about two expressions, exactly if their numbers allow it; may never return."""
    if question == "same":
        with suppress(UndefinedError):
            forms = [normal_form(side, max_bits=_LARGE_BITS, max_work=_LARGE_WORK) for side in (left, right)]
            values = [form.rational for form in forms if form is not None]
            if len(values) == 2 and None not in values:
                return values[0] == values[1]
        return same_value(left, right)
    return proportional(left, right, positive=question == "positive")


def grade(answer: str, reference: str, options: MathOptions) -> tuple[bool, str]:
    """Return whether an answer is equivalent to the reference, and the reason; may never return."""
    try:
        correct = decide(read(reference), read(answer), options, algebra=algebra)
    except (MemoryError, OverflowError):
        correct = None
    return bool(correct), "undecided" if correct is None else "equivalent" if correct else "differs"


def main() -> None:
    """Serve requests ``{"answer", "reference", "options", "deadline_s"}`` with replies ``{"correct", "reason"}`` until the input ends."""
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # not every system lets an address space be capped
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES), hard))
    grade("\\sin x", "\\cos x", MathOptions())  # the first call builds tables; it is no part of any deadline
    _send(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["deadline_s"])
        correct, reason = grade(request["answer"], request["reference"], MathOptions(**request["options"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, {"correct": correct, "reason": reason})


def _private_stdout() -> IO[str]:
    """Reserve standard output for replies and return it; the output of libraries goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def _send(replies: IO[str], reply: dict[str, object]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
