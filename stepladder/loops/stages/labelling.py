"""From a shard of searched trees to the rows that the policy learns from, by the rules that the configuration names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.data.labels.pair_rules import AnchoredPairs
from stepladder.data.labels.pairing import PairSources
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.traces import revision_traces, select_traces, within_window
from stepladder.data.store import read_trees
from stepladder.interfaces import ScoreRequest, StepScorer, collect_all
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import RecentVersions
from stepladder.loops.runs.workers import worker_models
from stepladder.tree_paths import children_of, path_to
from stepladder.types import Problem, Trace, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSources:
    """What the rows of a shard are made from."""

    trees: Path
    """The round's trees."""
    earlier: tuple[Path, ...] = ()
    """Trees of the same problems from earlier rounds, oldest first; read only where a rule needs them."""
    policy: str = ""
    """The policy that searched; its tokenizer writes revisions."""
    earlier_prm: str | None = None
    """The PRM before the one that guided the search; None where there is none, or nothing asks for it."""


def policy_selections(config: Config, own: list[TreeRecord], sources: LabelSources) -> dict[str, Selection[Any]]:
    """Return what the policy learns from the round's own trees, and from its other sources, by kind.

    There are always ``traces`` and ``pairs``; where the configuration asks for them, ``trees`` (those within the policy window),
    ``revisions`` and ``graded``.
    """
    labels = config.labels
    reads_earlier = isinstance(labels.data, RecentVersions) or isinstance(labels.pairs, AnchoredPairs)
    earlier = [record for path in sources.earlier for record in read_trees(path)] if reads_earlier else []
    selections: dict[str, Selection[Any]] = {}
    records = own
    if isinstance(labels.data, RecentVersions):
        selections["trees"] = within_window([*earlier, *own], versions=labels.data.window)
        records = selections["trees"].rows
    selections["traces"] = select_traces(records, per_problem=labels.traces_per_problem, min_value=labels.min_trace_value)
    if labels.revisions:
        selections["revisions"] = _revisions(config, records, sources.policy)
    first_trees = _first_version([*earlier, *own])
    pair_sources = PairSources(earlier_scores=_earlier_scores(config, records, sources), first_trees=first_trees)
    selections["pairs"] = labels.pairs.select(records, pair_sources)
    if config.preference.unpaired:
        selections["graded"] = labels.graded.select(records)
    return selections


def trace_rows(selections: dict[str, Selection[Any]]) -> list[Trace]:
    """Return the rows of the SFT stage."""
    return [row for kind in ("traces", "revisions") if kind in selections for row in selections[kind].rows]


def _revisions(config: Config, records: list[TreeRecord], policy: str) -> Selection[Trace]:
    renderer, text = build_renderer(config, policy), config.labels.revision_text
    return revision_traces(
        records,
        revision_ids=[token for step in renderer.encode_steps(text, place="labels.revision_text") for token in step],
        revision=text,
        of_solution=config.labels.revision_of == "solution",
        end_ids={renderer.end_id, renderer.tokenizer.eos_token_id},
        per_problem=config.labels.revisions,
    )


def _first_version(records: list[TreeRecord]) -> list[TreeRecord]:
    """Return the trees of the oldest policy version."""
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
            above = [token for node in path_to(record, parent) for token in record.token_ids[node]]
            branches = tuple((tuple(record.token_ids[child]),) for child in children)
            requests.append(ScoreRequest(ticket=len(requests), prefix_ids=(*record.prompt_ids, *above), branches=branches))
            places.append((index, children))
    scores: list[list[float | None]] = [[None] * len(record.parents) for record in records]
    for result, (index, children) in zip(collect_all(scorer, requests), places, strict=True):
        for child, branch in zip(children, result.scores, strict=True):
            scores[index][child] = branch[0]
    return scores
