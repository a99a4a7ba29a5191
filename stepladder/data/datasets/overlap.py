"""Questions that two sets of problems share: removed where they are equal, reported where they are similar."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepladder.data.datasets.problems import normalise_question
from stepladder.types import LabelledProblem

NUM_WORDS = 10
"""Words of a run that makes two questions similar. Shorter questions are similar if all their words are the same."""
_MOST_EXAMPLES = 5
_WORD = re.compile(r"\w+")


def without_questions(problems: Sequence[LabelledProblem], others: Iterable[LabelledProblem]) -> tuple[list[LabelledProblem], int]:
    """Return the problems whose normalised question is not among others, and how many are left out."""
    taken = {normalise_question(labelled.problem.question) for labelled in others}
    kept = [labelled for labelled in problems if normalise_question(labelled.problem.question) not in taken]
    return kept, len(problems) - len(kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """Problems of an evaluation set that resemble training problems."""

    num_problems: int
    """Problems of the evaluation set."""
    num_similar: int
    """Those that share a run of ten words with a training problem."""
    examples: list[tuple[str, str]]
    """Ids of such a problem and of the first training problem that it resembles; at most five."""


def contamination(training: Sequence[LabelledProblem], evaluation: Sequence[LabelledProblem]) -> Contamination:
    """Compare the questions of two sets by runs of words.

    Words are runs of letters and digits without case; so punctuation, white space and layout do not count.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C, who compare runs of 8 to 13 words; questions are short,
    so we take 10.
    """
    first: dict[int, str] = {}
    for labelled in training:
        for run in _runs(labelled.problem.question):
            first.setdefault(run, labelled.problem.id)
    found = [(each.problem.id, next((first[run] for run in _runs(each.problem.question) if run in first), None)) for each in evaluation]
    similar = [(problem_id, other) for problem_id, other in found if other is not None]
    return Contamination(num_problems=len(evaluation), num_similar=len(similar), examples=similar[:_MOST_EXAMPLES])


def _runs(question: str) -> list[int]:
    """Return the hashes of all runs of words of a question."""
    words = _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
    return [hash(tuple(words[begin : begin + NUM_WORDS])) for begin in range(max(len(words) - NUM_WORDS, 0) + 1)] if words else []
