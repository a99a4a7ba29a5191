"""What runs inside a worker: each job reads files, writes one finished file or directory, and returns a small summary.

A job whose result exists is never started, so a job never looks for its own result. It depends on nothing that an earlier job left in the
process: caches of keys and values are built anew, and every seed is derived from names. That is what makes a killed run end with the bytes
of one that was never killed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepladder.data.labels import preference_pairs, select_traces, value_rows
from stepladder.data.store import read_pairs, read_traces, read_trees, read_values, write_pairs, write_traces, write_trees, write_values
from stepladder.errors import DataFormatError
from stepladder.files import atomic_write_text
from stepladder.loops import build
from stepladder.loops.config import Config
from stepladder.loops.workers import Progress, report_progress
from stepladder.mcts.engine import SearchEvent
from stepladder.mcts.methods import resolve_method
from stepladder.types import Budget, LabelledProblem, PreferencePair, Provenance, SearchResult, StopReason, Trace, ValueRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models of a job."""

    policy: str
    """Directory or hub id of the policy."""
    prm: str | None
    """Directory of the PRM; None searches without one."""
    provenance: Provenance
    """Versions, seed and hashes to be stored with what the job makes; the renderer hash is filled in by the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """What searching a shard came to."""

    problems: int
    """Problems searched."""
    solved: int
    """Problems with at least one right answer in their tree."""
    generated_tokens: int
    """Tokens sampled."""
    errors: int
    """Steps that a backend failed on; their messages are in the trees."""


def search_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> SearchSummary:
    """Search a shard of training problems in label mode and write its trees."""
    method, budget = build.build_method(config.search), build.search_budget(config.search)
    with _verifier(config, problems) as verifier:
        results = _search(config, models, problems, method=method, budget=budget, verifier=verifier, stage=stage)
    write_trees(out, [result.tree for result in results])
    return SearchSummary(
        problems=len(results),
        solved=sum(1.0 in result.tree.outcomes for result in results),
        generated_tokens=sum(result.tree.generated_tokens for result in results),
        errors=sum(reason == StopReason.ERROR for result in results for reason in result.tree.stop_reasons),
    )


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
        "values": value_rows(records, target=config.prm.target),
    }
    write_traces(traces, selections["traces"].rows)
    write_pairs(pairs, selections["pairs"].rows)
    write_values(values, selections["values"].rows)
    return {name: {"kept": chosen.kept, "dropped_by_reason": dict(chosen.dropped_by_reason)} for name, chosen in selections.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSummary:
    """What a training stage came to."""

    updates: int = 0
    """Optimiser updates."""
    rows: int = 0
    """Rows trained on."""
    tokens: int = 0
    """Tokens forwarded, padding not counted."""
    first_loss: float | None = None
    """Loss of the first update."""
    last_loss: float | None = None
    """Loss of the last update."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""


def warm_up(*, config: Config, solutions: Path, out: Path, stage: str) -> TrainSummary:
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
    report = train_sft(config.policy.model, rows, out, settings, renderer_hash=renderer.hash, on_progress=_training_progress(stage))
    return _train_summary(report)


def train_policy(*, config: Config, start: str, traces: list[Path], pairs: list[Path], out: Path, seed: int, stage: str) -> dict[str, Any]:
    """Fine-tune the policy on correct traces, then on preference pairs; return a summary of each stage that ran."""
    from stepladder.policy.train import train_preference, train_sft

    build.release_weights()
    device, summaries = config.policy.device, {}
    trace_rows: list[Trace] = [row for path in traces for row in read_traces(path)]
    pair_rows: list[PreferencePair] = [row for path in pairs for row in read_pairs(path)]
    use_pairs = config.preference.enabled and bool(pair_rows)
    sft_out = out.with_name("sft") if use_pairs else out
    renderer_hash = build.build_renderer(config, start).hash
    if not sft_out.exists():
        settings = build.train_settings(config.sft, seed=seed, device=device)
        report = train_sft(start, trace_rows, sft_out, settings, renderer_hash=renderer_hash, on_progress=_training_progress(f"{stage} SFT"))
        summaries["sft"] = asdict(_train_summary(report))
    if use_pairs:
        settings = build.train_settings(config.preference, seed=seed, device=device)
        report = train_preference(
            str(sft_out),
            pair_rows,
            out,
            settings,
            renderer_hash=renderer_hash,
            beta=config.preference.beta,
            label_smoothing=config.preference.label_smoothing,
            sft_weight=config.preference.sft_weight,
            on_progress=_training_progress(f"{stage} preferences"),
        )
        summaries["preference"] = asdict(_train_summary(report))
    return summaries


def train_prm(*, config: Config, start: str, values: list[Path], out: Path, seed: int, stage: str) -> dict[str, Any]:
    """Train the PRM on value rows."""
    from stepladder.prm.train import train_value

    build.release_weights()
    rows: list[ValueRow] = [row for path in values for row in read_values(path)]
    settings = build.train_settings(config.prm.train, seed=seed, device=config.policy.device)
    renderer_hash = build.build_renderer(config, start).hash
    report = train_value(
        start, rows, out, settings, loss=config.prm.loss, renderer_hash=renderer_hash, on_progress=_training_progress(stage)
    )
    return asdict(_train_summary(report))


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
    results = _search(config, models, problems, method=method, budget=budget, verifier=None, stage=stage)
    with _verifier(config, problems) as verifier:
        rows = [_graded(result, kind, verifier) for result in results]
    if kind == "search":
        write_trees(out.with_suffix(".parquet"), [result.tree for result in results])
    atomic_write_text(out, json.dumps({"rows": rows}) + "\n")


def has_rows(shards: list[Path]) -> bool:
    """Say whether any of the Parquet shards holds a row."""
    import pyarrow.parquet as pq

    return any(pq.read_metadata(path).num_rows for path in shards)


def _search(  # noqa: PLR0913 - a job's own parts
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    method: SearchMethod,
    budget: Budget,
    verifier: AnswerVerifier | None,
    stage: str,
) -> list[SearchResult]:
    """Search problems and return the results in the order of the problems."""
    renderer = build.build_renderer(config, models.policy)
    engine = SearchEngine(
        policy=build.build_policy(config, models.policy),
        scorer=build.build_scorer(config, models.prm),
        renderer=renderer,
        method=method,
        budget=budget,
        verifier=verifier,
        provenance=replace(models.provenance, renderer_hash=renderer.hash),
        max_trees=config.search.max_trees,
    )
    found = engine.search([labelled.problem for labelled in problems], on_progress=_search_progress(stage))
    by_id = {result.problem_id: result for result in found}
    return [by_id[labelled.problem.id] for labelled in problems]


@contextmanager
def _verifier(config: Config, problems: list[LabelledProblem]) -> Iterator[AnswerVerifier]:
    verifier = AnswerVerifier(problems, config.problems.rule, deadline_s=config.problems.deadline_s)
    try:
        yield verifier
    finally:
        verifier.close()


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
