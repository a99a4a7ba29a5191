"""The Python that a step completes, run after that of its path; its output is the observation."""

import re
from collections.abc import Sequence

from stepladder.data.step_checks.code_blocks import blocks_of
from stepladder.data.step_checks.sandbox import CodeRun, CodeSandbox
from stepladder.interfaces import Observation, ToolCall

# One line each, so that line numbers in errors stay those of the code, less one. What earlier steps printed is their observation already.
_MUTED = "import io as _io, sys as _sys; _stdout, _sys.stdout = _sys.stdout, _io.StringIO()\n"
_HEARD = "_sys.stdout = _stdout\n"
_ERROR = re.compile(r"^(?:Traceback \(most recent call last\):\n)?(?:  .*\n)+(\S.*(?:\n.*)*)\Z", re.MULTILINE)
"""A traceback at the end of an output: frames, which are indented, then the error."""


class CodeTool:
    """A ``Tool`` that runs the code of steps in a sandbox.

    A step calls it if it completes a block (see ``code_blocks``). The block runs in a fresh process after the blocks of its path that ran
    to their end. So nothing is left over from other paths, and a block that failed is not run again. A block that prints nothing has no
    observation. Observations are never run.

    Source: Guan et al. 2025, "rStar-Math", section 3.2, which runs the code of a path with every step. There a step whose code fails is
    dropped. Here the policy sees the error and may correct it.
    """

    def __init__(self, sandbox: CodeSandbox) -> None:
        """Run code in a sandbox."""
        self._sandbox = sandbox

    def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
        """Return the output of the code that each step completes; None without any.

        Raises:
            BackendError: If a process does not start.
        """
        codes = [self._code(call) for call in calls]
        wanted = [code for code in codes if code is not None]
        runs = dict(zip(wanted, self._sandbox.run(wanted), strict=True))
        return [None if code is None else as_observation(runs[code], deadline_s=self._sandbox.deadline_s) for code in codes]

    def close(self) -> None:
        """Do nothing: the servers of the sandbox serve all of this process and end with it."""

    def _code(self, call: ToolCall) -> str | None:
        before, after = blocks_of(call.sampled), blocks_of(call.sampled + call.step)
        new = "".join(after[len(before) :])
        return program(self._ran(before), new) if new else None

    def _ran(self, blocks: Sequence[str]) -> list[str]:
        """Return the blocks of a path that ran to their end. Each ran before, so the sandbox remembers most results."""
        kept: list[str] = []
        for block in blocks:
            (run,) = self._sandbox.run([program(kept, block)])
            if run.passed:
                kept.append(block)
        return kept


def program(earlier: Sequence[str], block: str) -> str:
    """Return the code of a block after earlier ones, whose output is left out."""
    return _MUTED + "".join(earlier) + _HEARD + block if earlier else block


def as_observation(run: CodeRun, *, deadline_s: int) -> Observation | None:
    """Return what a policy sees of a run: its output, with the last line of a traceback; None if it ran and printed nothing."""
    output = run.output.strip("\n")
    if run.passed:
        return Observation(output) if output else None
    told = {"timeout": f"error: no result within {deadline_s} seconds", "overfull": "error: it wrote or printed too much"}
    message = told.get(run.reason, "error: the process ended")
    found = _ERROR.search(output)
    if found and run.reason == "failed":
        output, message = output[: found.start()], found[1]
    return Observation("\n".join(part for part in (output.strip("\n"), message) if part), failed=True)
