"""What runs inside a worker: each job reads files, writes one finished file or directory, and returns a small summary.

A job whose result exists is never started, so a job never looks for its own result. It depends on nothing that an earlier job left in the
process: caches of keys and values are built anew, and every seed is derived from names. That is what makes a killed run end with the bytes
of one that was never killed.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stepladder.data.answers import answer_key
from stepladder.data.labels import Selection, preference_pairs, select_traces, value_rows
from stepladder.data.store import read_pairs, read_traces, read_trees, read_values, write_pairs, write_traces, write_trees, write_values
from stepladder.data.verifier import AnswerVerifier
from stepladder.files import atomic_write_text
from stepladder.loops import build
from stepladder.loops.config import Config
from stepladder.loops.token_use import TokenUse, unique_tokens, use_path
from stepladder.loops.workers import Progress, report_progress
from stepladder.mcts.engine import SearchEngine, SearchEvent
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.types import (
    Budget,
    LabelledProblem,
    PreferencePair,
    Provenance,
    SearchResult,
    StopReason,
    Trace,
    TreeRecord,
    ValueRow,
)

Summary = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models of a job."""

    policy: str
    """Directory or hub id of the policy."""
    prm: str | None
    """Directory of the PRM; None searches without one."""
    provenance: Provenance
    """Versions, seed and hashes to be stored with what the job makes; the renderer hash is filled in by the job."""


def search_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Search a shard of training problems in label mode and write its trees."""
    _write_labelled(
        config, models, problems, method=build.build_method(config.search), budget=build.search_budget(config.search), out=out, stage=stage
    )


def roll_out_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Sample full solutions of a shard of training problems, grade them, and write them as trees."""
    limits = build.search_budget(config.search)
    budget = replace(limits, num_simulations=config.prm.rollouts, max_tokens=None)
    _write_labelled(config, models, problems, method=resolve_method("majority"), budget=budget, out=out, stage=stage)


def _write_labelled(
    config: Config, models: Models, problems: list[LabelledProblem], *, method: SearchMethod, budget: Budget, out: Path, stage: str
) -> None:
    with build.build_verifier(config.problems, problems) as verifier:
        results, use = _search(config, models, problems, method=method, budget=budget, verifier=verifier, stage=stage)
    # The shard comes last: a job is done when its shard is there.
    atomic_write_text(use_path(out), json.dumps(asdict(use)) + "\n")
    write_trees(out, [result.tree for result in results])


def label_shard(*, config: Config, trees: Path, traces: Path, pairs: Path, values: Path) -> dict[str, Any]:
    """Turn a shard of trees into traces, preference pairs and value rows; return the counts of what was kept and dropped."""
    records, labels = read_trees(trees), config.labels
    selections = {
        "traces": select_traces(records, per_problem=labels.traces_per_problem),
        "pairs": preference_pairs(
            records,
            min_margin=labels.min_margin,
            pairs_per_node=labels.pairs_per_node,
            pairs_per_problem=labels.pairs_per_problem,
            rejected_must_fail=labels.rejected_must_fail,
        ),
        "values": _value_rows(config, records),
    }
    write_traces(traces, selections["traces"].rows)
    write_pairs(pairs, selections["pairs"].rows)
    write_values(values, selections["values"].rows)
    return {name: {"kept": chosen.kept, "dropped_by_reason": dict(chosen.dropped_by_reason)} for name, chosen in selections.items()}


def warm_up(*, config: Config, solutions: Path, out: Path, stage: str) -> Summary:
    """Fine-tune the base policy on solved problems (round 0)."""
    from stepladder.data.labels import trace_from_solution
    from stepladder.data.problems import load_seed_solutions
    from stepladder.policy.train import train_sft

    renderer = build.build_renderer(config, config.policy.model)
    provenance = Provenance(
        round=0, policy_version=0, scorer_version=None, seed=config.run.seed, config_hash=config.hash(), renderer_hash=renderer.hash
    )
    rows = [trace_from_solution(solution, renderer=renderer, provenance=provenance) for solution in load_seed_solutions(solutions)]
    settings = build.train_settings(config.warmup.train, seed=config.run.seed, device=config.policy.device)
    trust = config.policy.trust_remote_code
    progress = _training_progress(stage)
    report = train_sft(config.policy.model, rows, out, settings, renderer_hash=renderer.hash, trust_remote_code=trust, on_progress=progress)
    return _summary(report)


def train_policy(*, config: Config, start: str, traces: list[Path], pairs: list[Path], out: Path, seed: int, stage: str) -> dict[str, Any]:
    """Fine-tune the policy on correct traces, then on preference pairs; return a summary of each stage that ran."""
    from stepladder.policy.train import train_preference, train_sft

    build.release_weights()
    trace_rows: list[Trace] = [row for path in traces for row in read_traces(path)]
    pair_rows: list[PreferencePair] = [row for path in pairs for row in read_pairs(path)] if config.preference.enabled else []
    common: dict[str, Any] = {
        "renderer_hash": build.build_renderer(config, start).hash,
        "trust_remote_code": config.policy.trust_remote_code,
    }
    summaries: dict[str, Any] = {}
    if trace_rows:
        sft_out = out.with_name("sft") if pair_rows else out
        if not sft_out.exists():
            settings = build.train_settings(config.sft, seed=seed, device=config.policy.device)
            report = train_sft(start, trace_rows, sft_out, settings, **common, on_progress=_training_progress(f"{stage} SFT"))
            summaries["sft"] = _summary(report)
        start = str(sft_out)
    if pair_rows:
        settings = build.train_settings(config.preference, seed=seed, device=config.policy.device)
        objective = build.build_preference_objective(config.preference)
        progress = _training_progress(f"{stage} preferences")
        report = train_preference(start, pair_rows, out, settings, **common, objective=objective, on_progress=progress)
        summaries["preference"] = _summary(report)
    return summaries


def train_prm(*, config: Config, start: str, values: list[Path], out: Path, seed: int, stage: str) -> dict[str, Any]:
    """Train the PRM on value rows."""
    from stepladder.prm.train import train_value

    build.release_weights()
    rows: list[ValueRow] = [row for path in values for row in read_values(path)]
    settings = build.train_settings(config.prm.train, seed=seed, device=config.policy.device)
    report = train_value(
        start,
        rows,
        out,
        settings,
        loss=config.prm.loss,
        supervise=config.prm.supervise,
        renderer_hash=build.build_renderer(config, start).hash,
        trust_remote_code=config.policy.trust_remote_code,
        on_progress=_training_progress(stage),
    )
    return _summary(report)


def evaluate_shard(*, config: Config, models: Models, problems: list[LabelledProblem], kind: str, out: Path, stage: str) -> None:
    """Run one kind of evaluation in solve mode, then grade it from outside and write its rows (and the search's trees).

    Kinds: ``greedy`` (one greedy solution), ``samples`` (independent full solutions, scored), ``search`` (the configured method).
    """
    section = config.evaluate
    budget = Budget(
        num_simulations=section.simulations,
        max_tokens=section.max_tokens,
        max_depth=config.search.max_depth,
        max_step_tokens=config.search.max_step_tokens,
    )
    if kind == "search":
        method = build.build_method(section)
    elif kind == "greedy":
        method = resolve_method("greedy")
    else:
        method = resolve_method("best-of-n", temperature=section.temperature)
        budget = Budget(num_simulations=section.samples, max_depth=budget.max_depth, max_step_tokens=budget.max_step_tokens)
    results, _ = _search(config, models, problems, method=method, budget=budget, verifier=None, stage=stage)
    with build.build_verifier(config.problems, problems) as verifier:
        rows = [_graded(result, kind, verifier, config) for result in results]
    if kind == "search":
        write_trees(out.with_suffix(".parquet"), [result.tree for result in results])
    atomic_write_text(out, json.dumps({"rows": rows}) + "\n")


def label_rollouts(*, config: Config, rollouts: Path, values: Path) -> None:
    """Turn a shard of rollouts into value rows."""
    write_values(values, _value_rows(config, read_trees(rollouts)).rows)


def _value_rows(config: Config, records: list[TreeRecord]) -> Selection[ValueRow]:
    return value_rows(records, target=config.prm.target, drop_one_sided=config.prm.mixed_only)


def has_rows(shards: list[Path]) -> bool:
    """Say whether any of the Parquet shards holds a row."""
    import pyarrow.parquet as pq

    return any(pq.read_metadata(path).num_rows for path in shards)


def _search(
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    method: SearchMethod,
    budget: Budget,
    verifier: AnswerVerifier | None,
    stage: str,
) -> tuple[list[SearchResult], TokenUse]:
    """Search problems and return the results in the order of the problems, and what the backends forwarded for them."""
    renderer = build.build_renderer(config, models.policy)
    engine = SearchEngine(
        policy=build.build_policy(config, models.policy),
        scorer=build.build_scorer(config, models.prm, renderer=renderer, problems=[labelled.problem for labelled in problems]),
        renderer=renderer,
        method=method,
        budget=budget,
        verifier=verifier,
        provenance=replace(models.provenance, renderer_hash=renderer.hash),
        max_trees=config.search.max_trees,
    )
    found = engine.search([labelled.problem for labelled in problems], on_progress=_search_progress(stage))
    by_id = {result.problem_id: result for result in found}
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=sum(unique_tokens(result.tree) for result in by_id.values()))
    return [by_id[labelled.problem.id] for labelled in problems], use


def _graded(result: SearchResult, kind: str, verifier: AnswerVerifier, config: Config) -> dict[str, Any]:
    """Return the row of one problem, graded."""
    if kind == "samples":
        return {"problem_id": result.problem_id, "samples": _graded_samples(result, verifier, config)}
    answers = [result.answer, *(answer for _, answer in result.anytime)]
    correct = [verdict.correct for verdict in verifier.grade([(result.problem_id, answer) for answer in answers])]
    row = {"problem_id": result.problem_id, "answer": result.answer, "correct": correct[0], "tokens": result.tree.generated_tokens}
    if kind == "search":
        row["anytime"] = [[tokens, right] for (tokens, _), right in zip(result.anytime, correct[1:], strict=True)]
    return row


def _graded_samples(result: SearchResult, verifier: AnswerVerifier, config: Config) -> list[dict[str, Any]]:
    """Return the independent samples of a sampled tree, graded, in the order in which they were drawn.

    Every draw has a last node of its own, and nodes are numbered in the order of the draws.
    """
    tree = result.tree
    last_nodes = [node for node, reason in enumerate(tree.stop_reasons) if reason != StopReason.STEP]
    verdicts = verifier.grade([(result.problem_id, tree.answers[node]) for node in last_nodes])
    return [_sample(tree, node, verdict.correct, config) for node, verdict in zip(last_nodes, verdicts, strict=True)]


def _sample(tree: TreeRecord, node: int, correct: bool, config: Config) -> dict[str, Any]:
    path = []
    while node > 0:
        path.append(node)
        node = tree.parents[node]
    path.reverse()
    answer = tree.answers[path[-1]]
    return {
        "num_tokens": sum(len(tree.token_ids[step]) for step in path),
        "answer_key": None if answer is None else answer_key(answer, config.problems.rule),
        "score": aggregate_scores([tree.scores[step] for step in path], rule=config.evaluate.aggregation),
        "correct": correct,
    }


def _search_progress(stage: str) -> Callable[[SearchEvent], None]:
    """Return a callback that reports what is new since its last call."""
    last = SearchEvent(problems_done=0, generated_tokens=0, solved=0)

    def report(event: SearchEvent) -> None:
        nonlocal last
        report_progress(
            Progress(
                stage=stage,
                items=event.problems_done - last.problems_done,
                tokens=event.generated_tokens - last.generated_tokens,
                solved=event.solved - last.solved,
            )
        )
        last = event

    return report


def _training_progress(stage: str) -> Callable[[int, int, float, int], None]:
    """Return a trainer's callback that reports one update and the tokens since the last call."""
    seen = 0

    def report(step: int, total: int, loss: float, tokens: int) -> None:
        nonlocal seen
        report_progress(Progress(stage=stage, items=1, tokens=tokens - seen, total=total))
        seen = tokens

    return report


def _summary(report: Any) -> Summary:
    """Return a training report without its wall-clock time, which belongs to the events."""
    return {name: value for name, value in asdict(report).items() if name != "seconds"}
