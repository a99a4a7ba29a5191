"""Refine the failed solutions of a round's trees, shard by shard: pairs for the policy, and rows for the judge that refines."""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import with_config

from stepladder.data.labels.candidates import find_solutions, judge_trees
from stepladder.files import atomic_write_text, read_json
from stepladder.loops.assembly.policies import build_policy, build_renderer
from stepladder.loops.assembly.problems import build_verifier
from stepladder.loops.assembly.scorers import prm_source
from stepladder.loops.assembly.search import step_limit
from stepladder.loops.config.run import Config
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.runs.workers import Progress, Task, report_progress, worker_models
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.kinds import REFINED, REFINEMENTS, TREES
from stepladder.mcts.methods import resolve_method
from stepladder.types import LabelledProblem, PreferencePair, Problem, Trace, TreeRecord, derive_seed

if TYPE_CHECKING:
    from stepladder.loops.assembly.refinement import Attempt, Refiner


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    failed: int
    mended: int
    right: int
    generated_tokens: int


def refine(context: RoundContext, number: int, models: Models) -> int:
    """Refine the failed solutions of a round; return the tokens of the refinements. Nothing without ``search.refinement`` or a PRM."""
    if context.config.search.refinement is None or models.prm is None:
        return 0
    stage, missing = f"round {number}: refinements", context.missing(number, REFINED)
    tasks = [
        Task.of(
            refine_shard,
            config=context.config,
            models=models,
            problems=shard.problems,
            trees=context.run.shard(number, TREES.name, shard.number),
            refined=shard.out,
            refinements=context.run.shard(number, REFINEMENTS.name, shard.number),
            stage=stage,
        )
        for shard in missing
    ]
    with context.stage(number, "refine"):
        context.work(tasks, {stage: sum(len(shard.problems) for shard in missing)})
    facts = _facts(context, number)
    context.display.say(
        f"{stage}: {facts.mended} of {facts.failed} solutions that the judge rejects are mended, {facts.right} of them have the "
        "right answer"
    )
    return facts.generated_tokens


def refinement_counts(context: RoundContext, number: int, labels: LabelCounts) -> LabelCounts:
    """Return the counts of a round's rows with those of its refinements, if it has any."""
    if not context.run.shards(REFINED.name, rounds=[number]):
        return labels
    facts = _facts(context, number)
    dropped = {"not mended": facts.failed - facts.mended} if facts.failed > facts.mended else {}
    return replace(labels, refined=RowCounts(kept=facts.mended, dropped_by_reason=dropped))


def _facts(context: RoundContext, number: int) -> _Facts:
    """Return the counts of a round's refinements, summed over shards."""
    what, remedy = "the counts of refinements", "remove it and the shard beside it, and run evolve again"
    files = [path.with_suffix(".json") for path in context.paths(number, REFINED)]
    shards = [record_of(_Facts, read_json(path, what=what, remedy=remedy), place=path, what=what, remedy=remedy) for path in files]
    return _Facts(**{each.name: sum(getattr(shard, each.name) for shard in shards) for each in fields(_Facts)})


def refine_shard(
    *, config: Config, models: Models, problems: list[LabelledProblem], trees: Path, refined: Path, refinements: Path, stage: str
) -> None:
    """Refine the failed solutions of a shard of trees; write pairs, rows for the judge, and counts as JSON."""
    from stepladder.loops.assembly.refinement import failed_attempts

    rule, records = config.search.refinement, TREES.read([trees])
    assert rule is not None and isinstance(models.prm, str), "checked before the run"
    chosen = {"aggregation": config.evaluate.aggregation, "step_end": config.format.step_end}
    failed = [
        (record, attempt) for record in records for attempt in failed_attempts(record, accept=rule.accept, most=rule.per_problem, **chosen)
    ]
    refiner = _refiner(config, models.prm, seed=derive_seed(config.run.seed, "refine", models.provenance.round))
    found = refiner.search([attempt for _, attempt in failed])
    mended = [(record, attempt, better) for (record, attempt), better in zip(failed, found, strict=True) if better is not None]
    with build_verifier(config.problems, problems) as verifier:
        verdicts = verifier.grade([(record.problem_id, better.answer) for record, _, better in mended])
    REFINEMENTS.write(refinements, [_trace(record, better) for record, _, better in mended])
    facts = {
        "failed": len(failed),
        "mended": len(mended),
        "right": sum(verdict.correct for verdict in verdicts),
        "generated_tokens": refiner.generated_tokens,
    }
    atomic_write_text(refined.with_suffix(".json"), json.dumps(facts) + "\n")
    # The pairs come last: the job is done when they are there.
    REFINED.write(refined, [_pair(record, attempt, better) for record, attempt, better in mended])
    report_progress(Progress(stage=stage, items=len(problems), tokens=refiner.generated_tokens))


def _refiner(config: Config, judge_dir: str, *, seed: int) -> "Refiner":
    from stepladder.loops.assembly.prms import open_solution_scorer
    from stepladder.loops.assembly.refinement import Refiner

    rule = config.search.refinement
    assert rule is not None, "only then is anything refined"
    return Refiner(
        build_policy(config, worker_models(), judge_dir),
        open_solution_scorer(prm_source(config, judge_dir), worker_models()),  # pyright: ignore[reportArgumentType] - it is a judge
        build_renderer(config, judge_dir),
        rule,
        step_end=config.format.step_end,
        aggregation=config.evaluate.aggregation,
        seed=seed,
        max_steps=config.search.max_depth,
        max_step_tokens=step_limit(config.search, resolve_method("majority")),
    )


def _pair(record: TreeRecord, failed: "Attempt", better: "Attempt") -> PreferencePair:
    return PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        chosen_ids=list(better.token_ids),
        rejected_ids=list(failed.token_ids),
        prompt=record.question,
        chosen=better.text,
        rejected=failed.text,
        chosen_value=better.score,
        rejected_value=failed.score,
        depth=1,
        provenance=record.provenance,
    )


def _trace(record: TreeRecord, better: "Attempt") -> Trace:
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=list(better.prompt_ids),
        completion_ids=list(better.token_ids),
        prompt=record.question,
        completion=better.text,
        mean_value=better.score,
        provenance=record.provenance,
    )


def refinement_examples(config: Config, records: list[TreeRecord], judge_dir: str) -> list[Trace]:
    """Return right solutions as refinements of wrong ones of the same problem, which a refiner learns before its first search.

    Args:
        config: The configuration; ``search.refinement.per_problem`` wrong solutions of a problem are mended at most.
        records: Graded samples. The best right one mends all wrong ones of its tree.
        judge_dir: The refiner, whose tokenizer writes the prompts.
    """
    from stepladder.loops.assembly.refinement import refinement_question

    rule, renderer = config.search.refinement, build_renderer(config, judge_dir)
    assert rule is not None, "only then is anything refined"
    rows = []
    for tree in judge_trees(records):
        right, wrong = (find_solutions(tree, right=side, dropped=Counter()) for side in (True, False))
        if not right:
            continue
        best, record = max(right, key=lambda solution: solution.rank), tree.record
        problem = Problem(id=record.problem_id, question=record.question)
        distinct = {tuple(solution.tokens.ids): solution.tokens.text for solution in wrong}
        asked = [refinement_question(rule, problem, solution=text, critique="") for text in list(distinct.values())[: rule.per_problem]]
        rows += [
            Trace(
                problem_id=record.problem_id,
                prompt_ids=list(renderer.prompt_ids(question)),
                completion_ids=best.tokens.ids,
                prompt=question.question,
                completion=best.tokens.text,
                mean_value=1.0,
                provenance=record.provenance,
                completion_given=best.tokens.given,
            )
            for question in asked
        ]
    return rows
