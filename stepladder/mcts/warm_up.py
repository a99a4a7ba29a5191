"""Compiling the loops of a search before a clock runs: the first search after an installation would spend its seconds on that."""

from collections.abc import Sequence

from stepladder.interfaces import ScoreRequest, ScoreResult, StepRequest, StepResult
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, Problem, Provenance, Step, StopReason


def compile_loops(method: SearchMethod, *, scored: bool) -> None:
    """Run a tiny search of a method, so that later searches find its loops compiled. It takes milliseconds if they are on disk.

    Args:
        method: The method.
        scored: Whether later searches have a scorer.
    """
    engine = SearchEngine(
        policy=_OneToken(),
        scorer=_Half() if scored else None,
        renderer=_NoText(),
        method=method,
        budget=Budget(num_simulations=2 * method.selection.wave + 2, max_depth=3, max_step_tokens=1),
        provenance=Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash=""),
        max_trees=1,
    )
    for _ in engine.search([Problem(id="", question="")]):
        pass


class _OneToken:
    """A policy whose samples are steps of one token; sample i is token i."""

    def __init__(self) -> None:
        self._open: list[StepRequest] = []

    def submit(self, requests: Sequence[StepRequest]) -> None:
        self._open += requests

    def collect(self) -> list[StepResult]:
        ready, self._open = self._open, []
        return [
            StepResult(ticket=request.ticket, samples=tuple(self._sample(request, i) for i in range(request.num_samples)))
            for request in ready
        ]

    @staticmethod
    def _sample(request: StepRequest, number: int) -> tuple[Step, ...]:
        return (Step(token_ids=(number,), logps=(-1.0,), text="", stop_reason=StopReason.STEP),) * request.max_steps


class _Half:
    """A scorer to which every step is worth one half."""

    def __init__(self) -> None:
        self._open: list[ScoreRequest] = []

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        self._open += requests

    def collect(self) -> list[ScoreResult]:
        ready, self._open = self._open, []
        return [
            ScoreResult(ticket=request.ticket, scores=tuple(tuple(0.5 for _ in branch) for branch in request.branches)) for request in ready
        ]


class _NoText:
    """A renderer of a prompt of one token, in which nobody reads an answer."""

    hash = ""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        return (0,)

    def extract_answer(self, text: str) -> None:
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""
