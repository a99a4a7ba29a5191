"""How a job runs a search engine: results in the order of the problems, and progress for people."""

from collections.abc import Sequence

from stepladder.loops.runs.workers import Progress, report_progress
from stepladder.mcts.engine import SearchEngine, SearchEvent
from stepladder.types import LabelledProblem, Problem, SearchResult


def questions_of(problems: Sequence[LabelledProblem]) -> list[Problem]:
    """Return the problems as a search may see them."""
    return [labelled.problem for labelled in problems]


def run_engine(engine: SearchEngine, problems: Sequence[LabelledProblem], *, stage: str) -> list[SearchResult]:
    """Search problems and return the results in the order of the problems. Report progress under the name of the stage."""
    found = engine.search(questions_of(problems), on_progress=_SearchProgress(stage))
    by_id = {result.problem_id: result for result in found}
    return [by_id[labelled.problem.id] for labelled in problems]


class _SearchProgress:
    """An engine's callback that reports the progress since its last call."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._last = SearchEvent(problems_done=0, generated_tokens=0, solved=0)

    def __call__(self, event: SearchEvent) -> None:
        last, self._last = self._last, event
        report_progress(
            Progress(
                stage=self._stage,
                items=event.problems_done - last.problems_done,
                tokens=event.generated_tokens - last.generated_tokens,
                solved=event.solved - last.solved,
            )
        )
