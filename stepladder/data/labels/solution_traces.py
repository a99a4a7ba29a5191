"""Written solutions as traces, for the warm-up."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from stepladder.data.datasets.problems import SeedSolution
from stepladder.errors import DataFormatError
from stepladder.types import Problem, Provenance, Trace


@runtime_checkable
class SolutionRenderer(Protocol):
    """The part of a renderer that writes a solved problem as tokens."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids."""
        ...

    def encode_solution(self, text: str, *, place: str) -> Sequence[Sequence[int]]:
        """Return the steps of a written solution as token ids, with the step ends of a sampled one; ``place`` names its source."""
        ...

    def encode_steps(self, text: str, *, place: str) -> Sequence[Sequence[int]]:
        """Return the steps of an unfinished solution as token ids; no end token follows."""
        ...


def steps_of_solution(solution: SeedSolution, renderer: SolutionRenderer) -> Sequence[Sequence[int]]:
    """Return the steps of a written solution as token ids, with an end token where a sampled one would have it."""
    encode = renderer.encode_solution if solution.finished else renderer.encode_steps
    return encode(solution.solution, place=f"solution {solution.id!r}")


def trace_from_solution(solution: SeedSolution, *, renderer: SolutionRenderer, provenance: Provenance) -> Trace:
    """Return a written solution as a trace. Its mean value is 1, because a teacher wrote it.

    Raises:
        DataFormatError: If no step can be read out of the solution.
    """
    steps = steps_of_solution(solution, renderer)
    completion_ids = [token for step in steps for token in step]
    if not completion_ids:
        raise DataFormatError(f"solution {solution.id!r}: must hold at least one step: got {solution.solution[:80]!r} -- correct the row")
    return Trace(
        problem_id=solution.id,
        prompt_ids=list(renderer.prompt_ids(Problem(id=solution.id, question=solution.question))),
        completion_ids=completion_ids,
        prompt=solution.question,
        completion=solution.solution,
        mean_value=1.0,
        provenance=provenance,
    )
