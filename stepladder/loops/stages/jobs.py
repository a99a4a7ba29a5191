"""What runs inside a worker: each job reads files, writes one finished file or directory, and returns a small summary.

A job whose result exists is never started, so a job never looks for its own result. It depends on nothing that an earlier job left in the
process: caches of keys and values are built anew, and every seed is derived from names. That is what makes a killed run end with the bytes
of one that was never killed.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.data.datasets.problems import load_seed_solutions
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.data.labels.rollouts import Estimate, Prefix, estimate_prefixes, first_error_values, rollout_values
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.solution_traces import trace_from_solution
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import ValueTarget
from stepladder.data.store import (
    read_graded,
    read_pairs,
    read_traces,
    read_trees,
    read_values,
    write_graded,
    write_pairs,
    write_traces,
    write_trees,
    write_values,
)
from stepladder.errors import BackendError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.interfaces import ScoreRequest, ScoreResult, StepScorer
from stepladder.loops.assembly.policies import build_policy, build_renderer, step_format
from stepladder.loops.assembly.problems import build_verifier
from stepladder.loops.assembly.search import build_method, search_budget, search_engine
from stepladder.loops.assembly.training import build_preference_objective, new_prm_spec, train_settings
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import ScoresConfig
from stepladder.loops.config.training import RolloutTarget, TreeTarget
from stepladder.loops.runs.token_use import TokenUse, unique_tokens, use_path
from stepladder.loops.runs.workers import Progress, report_progress, worker_models
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.graded_rows import answer_within, evaluation_row, outcome_row
from stepladder.loops.stages.labelling import LabelSources, policy_selections, trace_rows
from stepladder.mcts.engine import SearchEngine, SearchEvent
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.types import (
    Budget,
    LabelledProblem,
    Provenance,
    SearchResult,
    Trace,
    TreeRecord,
    ValueRow,
    derive_seed,
)

Summary = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models of a job."""

    policy: str
    """Directory or hub id of the policy."""
    prm: str | Sequence[str] | None
    """Directory or hub id of the PRM, or directory of an ensemble, or several of either; none searches without one."""
    provenance: Provenance
    """Versions, seed and hashes to be stored with what the job makes; the renderer hash is filled in by the job."""


def search_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Search a shard of training problems in label mode and write its trees."""
    _write_labelled(config, models, problems, method=build_method(config.search), budget=search_budget(config.search), out=out, stage=stage)


def roll_out_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Sample full solutions of a shard of training problems, grade them, and write them as trees."""
    limits = search_budget(config.search)
    budget = replace(limits, num_simulations=config.prm.rollouts, max_tokens=None)
    _write_labelled(config, models, problems, method=resolve_method("majority"), budget=budget, out=out, stage=stage)


def _write_labelled(
    config: Config, models: Models, problems: list[LabelledProblem], *, method: SearchMethod, budget: Budget, out: Path, stage: str
) -> None:
    with build_verifier(config.problems, problems) as verifier:
        results, use = _search(
            config, models, problems, method=method, budget=budget, verifier=verifier, scores=config.search.scores, stage=stage
        )
    # The shard comes last: a job is done when its shard is there.
    atomic_write_text(use_path(out), json.dumps(asdict(use)) + "\n")
    write_failures(out, results)
    write_trees(out, [result.tree for result in results])


def label_shard(*, config: Config, sources: LabelSources, out: dict[str, Path]) -> dict[str, Any]:
    """Turn a shard of trees into traces, preference pairs, graded rows and value rows; return the counts of what was kept and dropped.

    Args:
        config: The configuration.
        sources: What the rows are made from.
        out: Where each kind of rows goes: traces, pairs, graded, values and step-pairs.
    """
    records = read_trees(sources.trees)
    selections = policy_selections(config, records, sources)
    # The PRM learns from the round's own trees: what is recent enough for the policy is not its business.
    selections["values"] = _value_rows(config, records)
    write_traces(out["traces"], trace_rows(selections))
    write_pairs(out["pairs"], selections["pairs"].rows)
    write_values(out["values"], selections["values"].rows)
    if "graded" in selections:
        write_graded(out["graded"], selections["graded"].rows)
    _write_step_pairs(config, records, out["step-pairs"])
    return {name: {"kept": chosen.kept, "dropped_by_reason": dict(chosen.dropped_by_reason)} for name, chosen in selections.items()}


def warm_up(*, config: Config, solutions: Path, out: Path, stage: str) -> Summary:
    """Fine-tune the base policy on solved problems (round 0)."""
    from stepladder.policy.fine_tuning import train_sft

    renderer = build_renderer(config, config.policy.model)
    provenance = Provenance(
        round=0, policy_version=0, scorer_version=None, seed=config.run.seed, config_hash=config.hash(), renderer_hash=renderer.hash
    )
    rows = [trace_from_solution(solution, renderer=renderer, provenance=provenance) for solution in load_seed_solutions(solutions)]
    settings = train_settings(config.warmup.train, seed=config.run.seed, config=config)
    trust = config.policy.trust_remote_code
    progress = _training_progress(stage)
    report = train_sft(config.policy.model, rows, out, settings, renderer_hash=renderer.hash, trust_remote_code=trust, on_progress=progress)
    step_format(config).save(out)
    return _summary(report)


def train_policy(*, config: Config, start: str, base: str, rows: dict[str, list[Path]], out: Path, seed: int, stage: str) -> dict[str, Any]:
    """Fine-tune the policy on correct traces, then on preferences; return a summary of each stage that ran.

    Args:
        config: The configuration.
        start: The policy to train.
        base: The policy of round 0.
        rows: Shards of each of ``policy_kinds``.
        out: Where the trained policy goes.
        seed: Seed of the training.
        stage: Name under which progress is shown.
    """
    from stepladder.policy.fine_tuning import train_sft

    worker_models().release()
    traces: list[Trace] = [row for path in rows["traces"] for row in read_traces(path)]
    preferences = _preference_rows(config, rows)
    common: dict[str, Any] = {
        "renderer_hash": build_renderer(config, start).hash,
        "trust_remote_code": config.policy.trust_remote_code,
    }
    summaries: dict[str, Any] = {}
    if traces:
        sft_out = out.with_name("sft") if preferences else out
        if not sft_out.exists():
            settings = train_settings(config.sft, seed=seed, config=config)
            report = train_sft(start, traces, sft_out, settings, **common, on_progress=_training_progress(f"{stage} SFT"))
            summaries["sft"] = _summary(report)
        start = str(sft_out)
    if preferences:
        common["on_progress"] = _training_progress(f"{stage} preferences")
        summaries["preference"] = _summary(_train_preferences(config, preferences, start, base, out, seed, common))
    step_format(config).save(out)
    return summaries


def policy_kinds(config: Config) -> tuple[str, ...]:
    """Return the kinds of rows that the policy learns from: traces, and what its preference loss takes."""
    if not config.preference.enabled:
        return ("traces",)
    return ("traces", "graded" if config.preference.unpaired else "pairs")


def _preference_rows(config: Config, rows: dict[str, list[Path]]) -> list[Any]:
    read: dict[str, Callable[[Path], list[Any]]] = {"pairs": read_pairs, "graded": read_graded}
    return [row for kind in policy_kinds(config)[1:] for path in rows[kind] for row in read[kind](path)]


def _train_preferences(config: Config, rows: list[Any], start: str, base: str, out: Path, seed: int, common: dict[str, Any]) -> Any:
    from stepladder.policy.fine_tuning import SAMPLER, train_preference
    from stepladder.policy.unpaired import train_unpaired

    section = config.preference
    return (train_unpaired if section.unpaired else train_preference)(
        start,
        rows,
        out,
        train_settings(section, seed=seed, config=config),
        **common,
        objective=build_preference_objective(section),
        reference={"start": None, "base": base, "sampler": SAMPLER}[section.reference],
    )


def train_prm(*, config: Config, start: str, values: list[Path], out: Path, seed: int, stage: str, reference: str) -> Summary:
    """Train a PRM on value rows or step pairs.

    A training that cannot succeed (nothing to compare, a loss that is not finite) does not fail the run: the summary says ``failed``, and
    earlier PRMs stay.
    """
    from stepladder.prm.implicit import train_implicit_on_tokens
    from stepladder.prm.value_training import train_value

    worker_models().release()
    section = config.prm
    read: Callable[[Path], list[Any]] = read_pairs if isinstance(section.target, StepPairs) else read_values
    rows: list[Any] = [row for path in values for row in read(path)]
    if section.ensemble > 1 and section.bootstrap:
        rows = resample_problems(rows, seed=seed)
    spec, settings = new_prm_spec(section.loss), train_settings(section.train, seed=seed, config=config)
    common: dict[str, Any] = {
        "renderer_hash": build_renderer(config, start).hash,
        "trust_remote_code": config.policy.trust_remote_code,
        "loss": section.loss.type,
        "on_progress": _training_progress(stage),
    }
    try:
        if spec.family == "implicit":
            report = train_implicit_on_tokens(start, rows, out, settings, **common, spec=replace(spec, reference=reference))
        else:
            # A model to go on from says itself what it is; a new head is what the configuration says.
            kept = None if section.model is not None else spec
            report = train_value(start, rows, out, settings, **common, spec=kept, supervise=section.supervise)
    except (BackendError, DataFormatError) as error:
        return {"failed": str(error)}
    # With its format a model can be scored with and evaluated outside the run.
    step_format(config).save(out)
    return _summary(report)


def resample_problems(rows: list[Any], *, seed: int) -> list[Any]:
    """Return the rows of as many problems as there are, drawn with replacement; those of a problem drawn twice are there twice."""
    problems = sorted({row.problem_id for row in rows})
    drawn = np.random.default_rng(derive_seed(seed, "bootstrap")).integers(0, len(problems), len(problems)) if problems else []
    counts = Counter(problems[number] for number in drawn)
    return [row for row in rows for _ in range(counts[row.problem_id])]


def estimate_shard(*, config: Config, models: Models, problems: list[LabelledProblem], trees: Path, out: Path, stage: str) -> None:
    """Ask the policy from the prefixes of a shard of trees how they may end; write value rows, and how many tokens that took as JSON."""
    target, tokens = config.prm.target, 0
    assert isinstance(target, RolloutTarget), "only these targets are estimated"
    records = read_trees(trees)
    renderer, policy = build_renderer(config, models.policy), build_policy(config, worker_models(), models.policy)
    with build_verifier(config.problems, problems) as verifier:

        def ask(prefixes: Sequence[Prefix]) -> list[Estimate]:
            nonlocal tokens
            estimates = estimate_prefixes(
                policy,
                renderer,
                verifier,
                prefixes,
                num_rollouts=target.prefix_rollouts,
                seed=derive_seed(config.run.seed, "estimates", models.provenance.round),
                max_steps=config.search.max_depth,
                max_step_tokens=config.search.max_step_tokens,
            )
            tokens += sum(estimate.tokens for estimate in estimates)
            return estimates

        if target.type == "first-error":
            given = first_error_values(records, ask)
        else:
            given = rollout_values(records, ask, hard=target.type == "rollouts-hard")
    atomic_write_text(out.with_suffix(".json"), json.dumps({"generated_tokens": tokens}) + "\n")
    write_values(out, value_rows(records, given=given, drop_one_sided=config.prm.mixed_only).rows)
    report_progress(Progress(stage=stage, items=len(problems), tokens=tokens))


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
        method = build_method(section)
    elif kind == "greedy":
        method = resolve_method("greedy")
    else:
        method = resolve_method("best-of-n", temperature=section.temperature)
        budget = Budget(num_simulations=section.samples, max_depth=budget.max_depth, max_step_tokens=budget.max_step_tokens)
    results, _ = _search(config, models, problems, method=method, budget=budget, verifier=None, scores=section.scores, stage=stage)
    with build_verifier(config.problems, problems) as verifier:
        rows = [evaluation_row(result, kind, verifier, config) for result in results]
    if kind == "search":
        write_trees(out.with_suffix(".parquet"), [result.tree for result in results])
    write_failures(out, results)
    atomic_write_text(out, json.dumps({"rows": rows}) + "\n")


def compare_shard(
    *,
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    method: SearchMethod,
    budget: Budget,
    facts: dict[str, Any],
    out: Path,
    stage: str,
) -> None:
    """Search problems in solve mode with one method, grade the answers from outside, and write the rows with what they cost.

    What counts is the answer that was known when the generated tokens had not yet gone beyond ``budget.max_tokens``.

    Args:
        config: Format, limits, device.
        models: Models and seed.
        problems: The shard.
        method: How to search.
        budget: Caps per problem.
        facts: What the file says of itself, so that a later call can tell whether it holds what it looks for.
        out: JSON file to write.
        stage: Name of the stage, as shown.
    """
    engine = _engine(config, models, problems, method=method, budget=budget, verifier=None, scores=config.evaluate.scores)
    calls = None
    if engine.scorer is not None:
        engine.scorer = calls = _CountedScorer(engine.scorer)
    results, _ = _run(engine, problems, stage=stage)
    with build_verifier(config.problems, problems) as verifier:
        answers = [(result.problem_id, answer_within(result, method, budget.max_tokens)) for result in results]
        verdicts = verifier.grade(answers)
    rows = [outcome_row(result, answer, verdict.correct) for result, (_, answer), verdict in zip(results, answers, verdicts, strict=True)]
    costs = {
        "seconds": engine.stats.total_s,
        "policy_seconds": engine.stats.policy_s,
        "prm_seconds": engine.stats.scorer_s,
        "prm_calls": calls.count if calls else 0,
    }
    atomic_write_text(out, json.dumps({"facts": facts, "rows": rows, "costs": costs}) + "\n")


class _CountedScorer:
    """A scorer that counts its requests."""

    def __init__(self, scorer: StepScorer) -> None:
        self._scorer = scorer
        self.count = 0

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        self.count += len(requests)
        self._scorer.submit(requests)

    def collect(self) -> list[ScoreResult]:
        return self._scorer.collect()


def label_rollouts(*, config: Config, rollouts: Path, values: Path, compared: Path) -> None:
    """Turn a shard of rollouts into what the PRM learns from."""
    records = read_trees(rollouts)
    _write_step_pairs(config, records, compared)
    # Last, since the job is done when they are there.
    write_values(values, _value_rows(config, records).rows)


def _value_rows(config: Config, records: list[TreeRecord]) -> Selection[ValueRow]:
    # Estimated targets and pairs are made elsewhere; the rows beside them, for export, then hold mean outcomes.
    target = config.prm.target.type if isinstance(config.prm.target, TreeTarget) else ValueTarget.MONTE_CARLO
    return value_rows(records, target=target, drop_one_sided=config.prm.mixed_only)


def _write_step_pairs(config: Config, records: list[TreeRecord], out: Path) -> None:
    if isinstance(config.prm.target, StepPairs):
        write_pairs(out, config.prm.target.select(records).rows)


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
    scores: ScoresConfig,
    stage: str,
) -> tuple[list[SearchResult], TokenUse]:
    """Search problems and return the results in the order of the problems, and what the backends forwarded for them."""
    engine = _engine(config, models, problems, method=method, budget=budget, verifier=verifier, scores=scores)
    return _run(engine, problems, stage=stage)


def _engine(
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    method: SearchMethod,
    budget: Budget,
    verifier: AnswerVerifier | None,
    scores: ScoresConfig,
) -> SearchEngine:
    return search_engine(
        config,
        worker_models(),
        [labelled.problem for labelled in problems],
        policy=models.policy,
        prm=models.prm,
        method=method,
        budget=budget,
        provenance=models.provenance,
        scores=scores,
        verifier=verifier,
    )


def _run(engine: SearchEngine, problems: list[LabelledProblem], *, stage: str) -> tuple[list[SearchResult], TokenUse]:
    found = engine.search([labelled.problem for labelled in problems], on_progress=_search_progress(stage))
    by_id = {result.problem_id: result for result in found}
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=sum(unique_tokens(result.tree) for result in by_id.values()))
    return [by_id[labelled.problem.id] for labelled in problems], use


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
