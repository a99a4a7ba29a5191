"""Traces that teach a policy to say that it does not know: written for it, or its own where they are worth it.

An abstention is an answer like others. It is not right, but a policy that gives it instead of a wrong answer is more reliable.
"""

import math
from collections import Counter
from collections.abc import Sequence

from stepladder.data.labels.candidates import Ranked, best_of_sides
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import is_wrong
from stepladder.tree_paths import path_to, path_tokens
from stepladder.types import StopReason, Trace, TreeRecord, derive_seed


def abstention_worth(steps: int, *, after: float, slope: float) -> float:
    """Return the worth of saying "I don't know" after some steps, in (-1, 1), where a right answer is worth 1 and a wrong one -1.

        (1 - exp(-slope (steps - after))) / (1 + exp(-slope (steps - after))) = tanh(slope (steps - after) / 2)

    Args:
        steps: Steps before it, >= 0.
        after: Steps at which it is worth 0.
        slope: How fast its worth changes, > 0.

    Source: Zhao et al. 2024, "Automatic curriculum expert iteration for reliable LLM reasoning" (arXiv 2410.07627), equation of the
        reward; SalesforceAIResearch/Auto-CEI at b7ea2f5.
    """
    return math.tanh(slope * (steps - after) / 2)


def refusal_traces(records: Sequence[TreeRecord], abstain_ids: Sequence[int], text: str, *, per_problem: int) -> Selection[Trace]:
    """Return wrong solutions of unsolved problems whose last step, the answer, is replaced by an abstention.

    Candidates are the wrong solutions that ended, of problems without a right one. Which are kept is drawn by a seed of the run, the round
    and the solution.

    Args:
        records: Searched trees with outcomes.
        abstain_ids: Tokens of the abstention.
        text: The same as text.
        per_problem: Rows kept per problem, >= 1.

    Dropped by reason: ``failed step``, ``same tokens``, ``over problem cap``.

    Source: Zhang et al. 2023, "R-tuning: instructing large language models to say 'I don't know'"; the start of Auto-CEI.
    """
    dropped: Counter[str] = Counter()
    candidates = []
    for record, path in _ended(records):
        if not record.token_ids[path[-1]]:
            dropped["failed step"] += 1
        else:
            candidates.append(_ranked(record, path[:-1], abstain_ids, text))
    return best_of_sides([candidates], len(candidates) + dropped.total(), dropped, per_problem)


def abstaining_traces(records: Sequence[TreeRecord], answer: str, *, after: float, slope: float, per_problem: int) -> Selection[Trace]:
    """Return the policy's own abstentions on unsolved problems that are worth more than 0, those after most steps first.

    Args:
        records: Searched trees with outcomes.
        answer: The answer of an abstention.
        after: As for ``abstention_worth``.
        slope: As for ``abstention_worth``.
        per_problem: Rows kept per problem, >= 1.

    Dropped by reason: ``too early``, ``same tokens``, ``over problem cap``.

    Source: As for ``abstention_worth``. A right answer is always worth more, so problems that have one teach no abstention.
    """
    dropped: Counter[str] = Counter()
    candidates = []
    own = [(record, path) for record, path in _ended(records) if record.answers[path[-1]] == answer and record.token_ids[path[-1]]]
    for record, path in own:
        worth = abstention_worth(len(path) - 1, after=after, slope=slope)
        if worth > 0:
            candidates.append(_ranked(record, path, (), "", worth=worth))
        else:
            dropped["too early"] += 1
    return best_of_sides([candidates], len(own), dropped, per_problem)


def _ended(records: Sequence[TreeRecord]) -> list[tuple[TreeRecord, list[int]]]:
    """Return the wrong solutions that ended, of problems without a right one, as paths below the root."""
    solved = {record.problem_id for record in records if 1.0 in record.outcomes}
    return [
        (record, path_to(record, leaf))
        for record in records
        if record.problem_id not in solved
        for leaf, outcome in enumerate(record.outcomes)
        if leaf and is_wrong(outcome) and record.stop_reasons[leaf] in (StopReason.END, StopReason.ERROR)
    ]


def _ranked(record: TreeRecord, path: list[int], more_ids: Sequence[int], more: str, *, worth: float = 0.0) -> Ranked[Trace]:
    """Return a path and what follows it as a trace; of equal worth, one drawn by its tokens goes first."""
    tokens = path_tokens(record, path)
    seed = derive_seed(record.provenance.seed, record.provenance.round, "abstention", record.problem_id, ",".join(map(str, tokens.ids)))
    row = Trace(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        completion_ids=[*tokens.ids, *more_ids],
        prompt=record.question,
        completion=tokens.text + more,
        mean_value=(worth + 1) / 2,
        provenance=record.provenance,
        completion_given=[*tokens.given, *[False] * len(more_ids)] if tokens.given else [],
    )
    return Ranked(rank=(worth, float(seed)), row=row)
