"""From a shard of searched trees to the rows that policy and PRM learn from, by the rules that the configuration names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.data.labels.abstentions import abstaining_traces, refusal_traces
from stepladder.data.labels.pair_rules import AnchoredPairs
from stepladder.data.labels.pairing import PairSources
from stepladder.data.labels.pass_rates import within_pass_rates
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.traces import revision_traces, select_traces, within_window
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import ValueTarget, valued_trees
from stepladder.data.labels.verdicts import WrittenVerdict, verdict_traces
from stepladder.interfaces import ScoreRequest, StepScorer, collect_all
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.scorers import build_scorer, prm_source
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import AbstentionConfig, RecentVersions
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
    """Graded rollouts of the same problems, oldest first; read only with ``labels.rollouts``."""
    new_rollouts: tuple[Path, ...] = ()
    """Those of them that no earlier round has labelled; read only with ``labels.rollouts``, or where trees begin with them."""
    policy: str = ""
    """The policy that searched; its tokenizer writes revisions."""
    earlier_prm: str | None = None
    """The PRM before the one that guided the search; None without one, or if no setting needs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeRows:
    """The rows from a shard of trees; None for kinds that the configuration does not need."""

    trees: Selection[TreeRecord] | None
    """The trees within the policy window and the range of pass rates, from which the policy's rows are made."""
    traces: Selection[Trace]
    """Right solutions."""
    revisions: Selection[Trace] | None
    """Revisions of wrong ones."""
    abstentions: Selection[Trace] | None
    """Abstentions on unsolved problems."""
    verdicts: Selection[Trace] | None
    """Verdicts on steps."""
    soft_targets: Selection[SoftTarget] | None
    """Weighted steps, from the round's own trees."""
    pairs: Selection[PreferencePair]
    """Preference pairs."""
    graded: Selection[GradedRow] | None
    """Good and bad continuations."""
    advantages: Selection[AdvantageRow] | None
    """Solutions or steps with advantages."""
    values: Selection[ValueRow]
    """Value rows, from the round's own trees alone, and from samples that the search would have gone on from."""
    step_pairs: list[PreferencePair] | None
    """Pairs of steps for the PRM, from the same."""

    @property
    def all_traces(self) -> list[Trace]:
        """The rows of the SFT stage."""
        return [row for each in (self.traces, self.revisions, self.abstentions, self.verdicts) if each is not None for row in each.rows]

    def counts(self) -> LabelCounts:
        """Return the counts of kept and dropped rows."""
        return LabelCounts(
            trees=_counted(self.trees),
            traces=_counts(self.traces),
            revisions=_counted(self.revisions),
            abstentions=_counted(self.abstentions),
            verdicts=_counted(self.verdicts),
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
    usable = _within_pass_rates(config, _policy_trees(config, sources.new_rollouts, own) if recent is None else recent.rows)
    records, problems = valued_trees(usable.rows, labels.value), {record.problem_id for record in usable.rows}
    # Advantages are made of searched trees, without the graded samples of another stage.
    learned = [record for record in (own if recent is None else recent.rows) if record.problem_id in problems]
    mine = [record for record in own if record.problem_id in problems]
    first = _first_trees(config, sources, own)
    judged = [*own, *_left_alone(config, sources, own)]
    pair_sources = PairSources(earlier_scores=_earlier_scores(config, records, sources), first_trees=valued_trees(first, labels.value))
    return TreeRows(
        trees=_together(config, recent, usable),
        traces=select_traces(
            records,
            per_problem=labels.traces_per_problem,
            min_value=labels.min_trace_value,
            min_reward=labels.min_trace_reward,
            by=labels.trace_by,
        ),
        revisions=_revisions(config, records, sources.policy) if labels.revisions else None,
        abstentions=None if labels.abstention is None else _abstentions(config, labels.abstention, records, sources.policy),
        verdicts=_verdicts(config, records, sources.policy) if labels.verdicts else None,
        # Samples are no search: their shares are those of the policy that drew them.
        soft_targets=None if labels.soft_targets.type == "none" else labels.soft_targets.select(valued_trees(mine, labels.value)),
        pairs=labels.pairs.select(records, pair_sources),
        graded=labels.graded.select(records) if config.preference.unpaired else None,
        # Advantages have a choice of values of their own.
        advantages=labels.advantages.select(learned) if config.gradient.enabled else None,
        # The PRM learns from the round's own trees; the window of recent trees is only for the policy.
        values=tree_value_rows(config, judged),
        step_pairs=step_pair_rows(config, judged),
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


def _abstentions(config: Config, rule: AbstentionConfig, records: list[TreeRecord], policy: str) -> Selection[Trace]:
    """Return written abstentions, then the policy's own."""
    parts: list[Selection[Trace]] = []
    if rule.refusals:
        steps = build_renderer(config, policy).encode_steps(rule.text, place="labels.abstention.text")
        abstain_ids = [token for step in steps for token in step]
        parts.append(refusal_traces(records, abstain_ids, rule.text, per_problem=rule.refusals))
    if rule.kept:
        parts.append(abstaining_traces(records, rule.answer, after=rule.after, slope=rule.slope, per_problem=rule.kept))
    dropped = sum((Counter(part.dropped_by_reason) for part in parts), Counter())
    rows = [row for part in parts for row in part.rows]
    return Selection(rows=rows, considered=sum(part.considered for part in parts), dropped_by_reason=dict(dropped))


def _verdicts(config: Config, records: list[TreeRecord], policy: str) -> Selection[Trace]:
    from stepladder.loops.assembly.prms import verdict_prompts

    renderer, end = build_renderer(config, policy), config.format.step_end
    prompts = verdict_prompts(renderer.tokenizer, prm_source(config, policy).resolve())
    words = {True: prompts.spec.good or "", False: prompts.spec.bad or ""}

    def write(question: str, steps: Sequence[str], right: bool) -> WrittenVerdict:
        asked = prompts.prompt(question, [step.removesuffix(end) for step in steps])
        return WrittenVerdict(asked, prompts.words[right], words[right])

    return verdict_traces(records, write, per_side=config.labels.verdicts)


def _recent(config: Config, sources: LabelSources, own: list[TreeRecord]) -> Selection[TreeRecord] | None:
    """Return the trees and rollouts of the recent policy versions; None if every round makes rows of its own trees."""
    data = config.labels.data
    if not isinstance(data, RecentVersions):
        return None
    return within_window(_policy_trees(config, sources.rollouts, [*TREES.read(sources.earlier), *own]), versions=data.window)


def _within_pass_rates(config: Config, trees: list[TreeRecord]) -> Selection[TreeRecord]:
    """Return the trees of problems that are neither too hard nor too easy; all of them unless the configuration says what that is."""
    if not _filters(config):
        return Selection(rows=trees, considered=len(trees), dropped_by_reason={})
    return within_pass_rates(trees, low=config.labels.min_pass_rate, high=config.labels.max_pass_rate)


def _together(config: Config, recent: Selection[TreeRecord] | None, usable: Selection[TreeRecord]) -> Selection[TreeRecord] | None:
    """Return one selection of two, one after the other; None without a rule that drops trees, so that all shards count alike."""
    if recent is None:
        return usable if _filters(config) else None
    dropped = dict(Counter(recent.dropped_by_reason) + Counter(usable.dropped_by_reason))
    return Selection(rows=usable.rows, considered=recent.considered, dropped_by_reason=dropped)


def _filters(config: Config) -> bool:
    return (config.labels.min_pass_rate, config.labels.max_pass_rate) != (0.0, 1.0)


def _policy_trees(config: Config, rollouts: Sequence[Path], trees: list[TreeRecord]) -> list[TreeRecord]:
    """Return what the policy's rows are made of: trees, and graded rollouts unless the configuration leaves them out."""
    return [*trees, *(ROLLOUTS.read(rollouts) if config.labels.rollouts else [])]


def _left_alone(config: Config, sources: LabelSources, own: list[TreeRecord]) -> list[TreeRecord]:
    """Return the round's first samples of problems without a tree, such as those that they solved; other trees contain theirs."""
    if config.search.start != "first-samples":
        return []
    searched = {record.problem_id for record in own}
    return [record for record in ROLLOUTS.read(sources.new_rollouts) if record.problem_id not in searched]


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
