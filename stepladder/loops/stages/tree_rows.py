"""From a shard of searched trees to the rows that policy and PRM learn from, by the rules that the configuration names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.data.labels.pair_rules import AnchoredPairs
from stepladder.data.labels.pairing import PairSources
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.traces import revision_traces, select_traces, within_window
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import ValueTarget, valued_trees
from stepladder.interfaces import ScoreRequest, StepScorer, collect_all
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import RecentVersions
from stepladder.loops.config.training import TreeTarget
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.runs.workers import worker_models
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.tree_paths import children_of, ids_along, observations_along, path_to
from stepladder.types import AdvantageRow, GradedRow, PreferencePair, Problem, SoftTarget, Trace, TreeRecord, ValueRow


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSources:
    """Sources of the rows of a shard."""

    trees: Path
    """The round's trees."""
    earlier: tuple[Path, ...] = ()
    """Trees of the same problems from earlier rounds, oldest first; read only if a rule needs them."""
    rollouts: tuple[Path, ...] = ()
    """Graded rollouts of the same problems, oldest first; the last are those that the policy has not learned from. Read only with
    ``labels.rollouts``."""
    policy: str = ""
    """The policy that searched; its tokenizer writes revisions."""
    earlier_prm: str | None = None
    """The PRM before the one that guided the search; None without one, or if no setting needs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeRows:
    """The rows from a shard of trees; None for kinds that the configuration does not need."""

    trees: Selection[TreeRecord] | None
    """The trees within the policy window, from which the policy's rows are made."""
    traces: Selection[Trace]
    """Right solutions."""
    revisions: Selection[Trace] | None
    """Revisions of wrong ones."""
    soft_targets: Selection[SoftTarget] | None
    """Weighted steps, from the round's own trees."""
    pairs: Selection[PreferencePair]
    """Preference pairs."""
    graded: Selection[GradedRow] | None
    """Good and bad continuations."""
    advantages: Selection[AdvantageRow] | None
    """Solutions or steps with advantages."""
    values: Selection[ValueRow]
    """Value rows, from the round's own trees alone."""
    step_pairs: list[PreferencePair] | None
    """Pairs of steps for the PRM, from the same trees."""

    @property
    def all_traces(self) -> list[Trace]:
        """The rows of the SFT stage."""
        return [*self.traces.rows, *([] if self.revisions is None else self.revisions.rows)]

    def counts(self) -> LabelCounts:
        """Return the counts of kept and dropped rows."""
        return LabelCounts(
            trees=_counted(self.trees),
            traces=_counts(self.traces),
            revisions=_counted(self.revisions),
            soft_targets=_counted(self.soft_targets),
            pairs=_counts(self.pairs),
            graded=_counted(self.graded),
            advantages=_counted(self.advantages),
            values=_counts(self.values),
        )


def _counts(selection: Selection[Any]) -> RowCounts:
    return RowCounts(kept=selection.kept, dropped_by_reason=dict(selection.dropped_by_reason))


def _counted(selection: Selection[Any] | None) -> RowCounts | None:
    return None if selection is None else _counts(selection)


def rows_of_trees(config: Config, sources: LabelSources) -> TreeRows:
    """Return the rows of policy and PRM from a round's own trees; the policy's also from earlier rounds if a rule needs them."""
    labels, own = config.labels, TREES.read([sources.trees])
    recent = _recent(config, sources, own)
    records = valued_trees(_policy_trees(config, sources, own, last=1) if recent is None else recent.rows, labels.value)
    first = _first_trees(config, sources, own)
    pair_sources = PairSources(earlier_scores=_earlier_scores(config, records, sources), first_trees=valued_trees(first, labels.value))
    return TreeRows(
        trees=recent,
        traces=select_traces(
            records,
            per_problem=labels.traces_per_problem,
            min_value=labels.min_trace_value,
            min_reward=labels.min_trace_reward,
            by=labels.trace_by,
        ),
        revisions=_revisions(config, records, sources.policy) if labels.revisions else None,
        # Samples are no search: their shares are those of the policy that drew them.
        soft_targets=None if labels.soft_targets.type == "none" else labels.soft_targets.select(valued_trees(own, labels.value)),
        pairs=labels.pairs.select(records, pair_sources),
        graded=labels.graded.select(records) if config.preference.unpaired else None,
        # Advantages have a choice of values of their own.
        advantages=labels.advantages.select(own if recent is None else recent.rows) if config.gradient.enabled else None,
        # The PRM learns from the round's own trees; the window of recent trees is only for the policy.
        values=tree_value_rows(config, own),
        step_pairs=step_pair_rows(config, own),
    )


def tree_value_rows(config: Config, records: list[TreeRecord]) -> Selection[ValueRow]:
    """Return value rows of trees or rollouts."""
    # Estimated targets and pairs of steps are made elsewhere; the value rows, kept for export, then have mean outcomes.
    target = config.prm.target.type if isinstance(config.prm.target, TreeTarget) else ValueTarget.MONTE_CARLO
    return value_rows(records, target=target, drop_one_sided=config.prm.mixed_only)


def step_pair_rows(config: Config, records: list[TreeRecord]) -> list[PreferencePair] | None:
    """Return pairs of steps for the PRM; None if it learns from values."""
    return config.prm.target.select(records).rows if isinstance(config.prm.target, StepPairs) else None


def _revisions(config: Config, records: list[TreeRecord], policy: str) -> Selection[Trace]:
    renderer, text = build_renderer(config, policy), config.labels.revision_text
    ends = (renderer.end_id, renderer.tokenizer.eos_token_id)
    return revision_traces(
        records,
        revision_ids=[token for step in renderer.encode_steps(text, place="labels.revision_text") for token in step],
        revision=text,
        of_solution=config.labels.revision_of == "solution",
        end_ids={each for each in ends if isinstance(each, int)},
        per_problem=config.labels.revisions,
    )


def _recent(config: Config, sources: LabelSources, own: list[TreeRecord]) -> Selection[TreeRecord] | None:
    """Return the trees and rollouts of the recent policy versions; None if every round makes rows of its own trees."""
    data = config.labels.data
    if not isinstance(data, RecentVersions):
        return None
    return within_window(_policy_trees(config, sources, [*TREES.read(sources.earlier), *own]), versions=data.window)


def _policy_trees(config: Config, sources: LabelSources, trees: list[TreeRecord], *, last: int = 0) -> list[TreeRecord]:
    """Return what the policy's rows are made of: trees, and the graded rollouts of the ``last`` rounds, or of all."""
    return [*trees, *(ROLLOUTS.read(sources.rollouts[-last:]) if config.labels.rollouts else [])]


def _first_trees(config: Config, sources: LabelSources, own: list[TreeRecord]) -> list[TreeRecord]:
    """Return the trees of the oldest policy version, if a rule needs them."""
    if not isinstance(config.labels.pairs, AnchoredPairs):
        return []
    records = [*TREES.read(sources.earlier), *own]
    first = min((record.provenance.policy_version for record in records), default=0)
    return [record for record in records if record.provenance.policy_version == first]


def _earlier_scores(config: Config, records: list[TreeRecord], sources: LabelSources) -> list[list[float | None]] | None:
    """Return the scores that the earlier PRM gives the steps of every tree; None without one."""
    if sources.earlier_prm is None:
        return None
    renderer = build_renderer(config, sources.policy)
    problems = {record.problem_id: Problem(id=record.problem_id, question=record.question) for record in records}
    scorer = build_scorer(
        config, worker_models(), prm=sources.earlier_prm, renderer=renderer, problems=problems.values(), scores=config.search.scores
    )
    return score_trees(scorer, records)


def score_trees(scorer: StepScorer, records: Sequence[TreeRecord]) -> list[list[float | None]]:
    """Return a score of every node of every tree; None for the root and for steps that could not be scored."""
    requests, places = [], []
    for index, record in enumerate(records):
        for parent, nodes in enumerate(children_of(record)):
            children = [node for node in nodes if record.token_ids[node]]
            if not children:
                continue
            above = path_to(record, parent)
            branches = tuple((tuple(record.token_ids[child]),) for child in children)
            prefix_ids = (*record.prompt_ids, *ids_along(record, above))
            observed = tuple(observations_along(record, above, start=len(record.prompt_ids)))
            requests.append(ScoreRequest(ticket=len(requests), prefix_ids=prefix_ids, branches=branches, observations=observed))
            places.append((index, children))
    scores: list[list[float | None]] = [[None] * len(record.parents) for record in records]
    for result, (index, children) in zip(collect_all(scorer, requests), places, strict=True):
        for child, branch in zip(children, result.scores, strict=True):
            scores[index][child] = branch[0]
    return scores
