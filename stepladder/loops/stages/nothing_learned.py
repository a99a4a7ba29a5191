"""Reason for a round without training rows for the policy, and advice."""

from collections.abc import Sequence

from stepladder.errors import StepladderError
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.kinds import ROLLOUTS, TREES, gradient_kind, preference_kind
from stepladder.types import StopReason, TreeRecord

_MORE = "raise search.simulations, warm up on solved problems (warmup.solutions), or take easier problems"
_CUT = (StopReason.LENGTH, StopReason.DEPTH)


def check_solved_problems_give_rows(context: RoundContext, number: int, labels: LabelCounts) -> None:
    """Check that a round whose searches solved problems made rows of them, and say so if it made no traces.

    Args:
        context: The run.
        number: The round.
        labels: Rows that labelling kept and dropped.

    Raises:
        StepladderError: If problems were solved and the rules of the configuration dropped everything, even if rows of earlier rounds
            remain to learn from.
    """
    learns_traces = context.config.sft.enabled
    if learns_traces and labels.traces.kept:
        return
    kinds = [TREES, ROLLOUTS] if context.config.prm.samples_first else [TREES]
    trees = [tree for kind in kinds for tree in kind.read(context.run.shards(kind.name, rounds=[number]))]
    searched, solved = {tree.problem_id for tree in trees}, {tree.problem_id for tree in trees if 1.0 in tree.outcomes}
    if not solved:
        return
    found = f"{len(solved)} of {len(searched)} problems were solved"
    if not any(labels.by_kind[kind].kept for kind in _policy_kinds(context) if kind in labels.by_kind):
        raise StepladderError(
            f"round {number}: right solutions must give the policy something to learn from: {found}, and the rules dropped everything "
            f"({_dropped(context, labels)}) -- loosen labels.min_trace_value or the settings of labels.pairs or "
            "labels.advantages, and start another run"
        )
    if learns_traces:
        context.display.say(f"round {number}: {found}, but no solution became a trace (traces: {_reasons(labels.traces)})")


def why_nothing_is_learned(context: RoundContext, number: int) -> str:
    """Return one sentence with the reason for which a round's searches solved no problem, and advice.

    Args:
        context: The run.
        number: The round.
    """
    trees = TREES.read(context.run.shards(TREES.name, rounds=[number]))
    if not trees:
        allocation = context.config.search.allocation.type
        return f"no problem was searched: search.allocation {allocation!r} left all of them out -- loosen it, or end the run here"
    return f"none of {len({tree.problem_id for tree in trees})} problems was solved: {_reason(trees)}"


def _dropped(context: RoundContext, labels: LabelCounts) -> str:
    """Return the reasons for which the policy's rows were dropped, with their counts."""
    return "; ".join(f"{kind}: {_reasons(labels.by_kind[kind])}" for kind in _policy_kinds(context) if kind in labels.by_kind)


def _policy_kinds(context: RoundContext) -> list[str]:
    """Return the kinds of rows that the policy learns from, by their names among the label counts."""
    preferences = preference_kind(context.config)
    traces = ["traces", "revisions", "abstentions", "verdicts", "soft_targets"] if context.config.sft.enabled else []
    gradient = gradient_kind(context.config)
    return [*traces, *(kind.name for kind in (preferences, gradient) if kind is not None)]


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
