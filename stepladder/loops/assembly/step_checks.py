"""Checks of steps by tools, for ``stepladder.prm.compose.CheckedScorer``: whether a step's own arithmetic, or its code, holds."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from stepladder.data.step_checks.arithmetic import arithmetic_holds
from stepladder.data.step_checks.code_blocks import code_of
from stepladder.data.step_checks.sandbox import CodeSandbox
from stepladder.interfaces import ScoreRequest, sampled_runs
from stepladder.prm.compose import StepCheck

Decode = Callable[[Sequence[int]], str]
"""Text of some token ids; the texts of steps concatenate to that of their solution."""


def arithmetic_check(decode: Decode) -> StepCheck:
    """Return a check that the equations of plain numbers in a step are true."""

    def check(requests: Sequence[ScoreRequest]) -> list[list[list[bool | None]]]:
        return [[[arithmetic_holds(decode(step)) for step in branch] for branch in request.branches] for request in requests]

    return check


def code_check(decode: Decode, *, prompt_length: Callable[[tuple[int, ...]], int | None], sandbox: CodeSandbox) -> StepCheck:
    """Return a check that the code that a step completes runs after the code of the earlier steps.

    Args:
        decode: Text of some tokens.
        prompt_length: Says how many tokens of a prefix are its prompt, whose code does not count; None if unknown, and
            nothing is checked.
        sandbox: Sandbox for the code.
    """

    def codes_of(request: ScoreRequest, branch: Sequence[Sequence[int]], start: int) -> list[str | None]:
        """Return the code to run for every step; None for a step that completes no code."""
        # An observation may look like code, but nobody runs it.
        sampled = [decode(ids) for ids, _ in sampled_runs(request.prefix_ids, request.observations, start=start)]
        texts = accumulate((decode(step) for step in branch), initial="".join(sampled))
        paths = [code_of(text) for text in texts]
        return [after if after != before else None for before, after in pairwise(paths)]

    def check(requests: Sequence[ScoreRequest]) -> list[list[list[bool | None]]]:
        starts = [prompt_length(request.prefix_ids) for request in requests]
        codes = [
            [[None] * len(branch) if start is None else codes_of(request, branch, start) for branch in request.branches]
            for request, start in zip(requests, starts, strict=True)
        ]
        wanted = list({code: None for request in codes for branch in request for code in branch if code is not None})
        passed = {code: run.passed for code, run in zip(wanted, sandbox.run(wanted), strict=True)}
        return [[[None if code is None else passed[code] for code in branch] for branch in request] for request in codes]

    return check
