"""Reason for a round without training rows for the policy, and advice."""

from collections.abc import Sequence

from stepladder.errors import StepladderError
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.kinds import TREES, preference_kind
from stepladder.types import StopReason, TreeRecord

_MORE = "raise search.simulations, warm up on solved problems (warmup.solutions), or take easier problems"
_CUT = (StopReason.LENGTH, StopReason.DEPTH)


def why_nothing_is_learned(context: RoundContext, number: int, labels: LabelCounts) -> str:
    """Return one sentence with the reason for which a round's searches gave the policy no rows, and advice.

    Args:
        context: The run.
        number: The round.
        labels: Rows that labelling kept and dropped.

    Raises:
        StepladderError: If problems were solved: then the rules of the configuration dropped every right solution.
    """
    trees = TREES.read(context.run.shards(TREES.name, rounds=[number]))
    solved = sum(1.0 in tree.outcomes for tree in trees)
    if solved:
        raise StepladderError(
            f"round {number}: right solutions must give the policy something to learn from: {solved} of {len(trees)} problems were solved, "
            f"and the rules dropped everything ({_dropped(context, labels)}) -- loosen labels.min_trace_value or the settings of "
            "labels.pairs, and start another run"
        )
    return f"none of {len(trees)} problems was solved: {_reason(trees)}"


def _dropped(context: RoundContext, labels: LabelCounts) -> str:
    """Return the reasons for which the policy's rows were dropped, with their counts."""
    preferences = preference_kind(context.config)
    kinds = ["traces", "revisions", *([] if preferences is None else [preferences.name])]
    return "; ".join(f"{kind}: {_reasons(labels.by_kind[kind])}" for kind in kinds if kind in labels.by_kind)


def _reasons(counts: RowCounts) -> str:
    listed = sorted(counts.dropped_by_reason.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{reason} {number:,}" for reason, number in listed) or "no candidates"


def _reason(trees: Sequence[TreeRecord]) -> str:
    """Return a description of the solutions, and advice."""
    reasons = [reason for tree in trees for reason in tree.stop_reasons]
    num_ended, num_cut = reasons.count(StopReason.END), sum(reasons.count(reason) for reason in _CUT)
    num_read = sum(answer is not None for tree in trees for answer in tree.answers)
    if num_cut > num_ended:
        return f"{num_cut:,} of {num_cut + num_ended:,} solutions were cut -- raise search.max_depth or search.max_step_tokens"
    if num_ended and not num_read:
        return f"no answer can be read from {num_ended:,} solutions -- check format.answer_pattern and format.prompt_template"
    return f"{num_ended:,} solutions, {num_read:,} with an answer, none of them right -- {_MORE}"
