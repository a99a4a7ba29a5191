"""The job of a comparison: search a shard of problems with one method, grade it from outside, and count its cost."""

from collections.abc import Sequence
from pathlib import Path

from stepladder.interfaces import ScoreRequest, ScoreResult, StepScorer
from stepladder.loops.config.run import Config
from stepladder.loops.runs.comparison_results import CellCosts, CellFacts, CellRow, CellShard
from stepladder.loops.runs.token_use import TokenUse, unique_tokens
from stepladder.loops.stages.context import Models
from stepladder.loops.stages.engine_run import open_shard, run_engine
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.graded_rows import answer_within
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, Failures, LabelledProblem, SearchResult, Verdict


def compare_shard(
    *,
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    method: SearchMethod,
    budget: Budget,
    facts: CellFacts,
    out: Path,
    stage: str,
) -> None:
    """Search problems in solve mode with one method, grade the answers from outside, and write the rows with their costs.

    The last answer within ``budget.max_tokens`` generated tokens counts.

    Args:
        config: Format, limits, device.
        models: Models and seed.
        problems: The shard.
        method: How to search.
        budget: Caps per problem.
        facts: Identity of the results in the file.
        out: JSON file to write.
        stage: Name of the stage, as shown.
    """
    calls = None
    with open_shard(config, models, problems, method=method, budget=budget, out=out) as (engine, verifier, key_of):
        if (scorer := engine.scorer) is not None:
            engine.scorer = calls = _CountedScorer(scorer)
        results = run_engine(engine, problems, stage=stage)
        answers = [(result.problem_id, answer_within(result, method, budget.max_tokens, key_of)) for result in results]
        verdicts = verifier.grade(answers)
        rows = [_row(result, answer, verdict) for result, (_, answer), verdict in zip(results, answers, verdicts, strict=True)]
        use = TokenUse.of(engine.policy, scorer, unique_tokens=sum(unique_tokens(result.tree) for result in results))
        costs = CellCosts(
            seconds=engine.stats.total_s,
            policy_seconds=engine.stats.policy_s,
            prm_seconds=engine.stats.scorer_s,
            prm_calls=calls.count if calls else 0,
            policy_forwarded=use.forwarded_tokens,
            prm_forwarded=0 if scorer is None else use.prm_forwarded_tokens,
        )
        write_failures(out, Failures.sum(result.failures for result in results))
        CellShard(facts=facts, rows=rows, costs=costs).save(out)


def _row(result: SearchResult, answer: str | None, verdict: Verdict) -> CellRow:
    tree = result.tree
    return CellRow(
        problem_id=result.problem_id,
        answer=answer,
        correct=verdict.correct,
        credit=verdict.credit,
        generated_tokens=tree.generated_tokens,
        steps=len(tree.parents) - 1,
        simulations=tree.num_simulations,
        policy_calls=tree.policy_calls,
        scored_tokens=tree.scored_tokens,
        stop_reason=str(result.stop_reason),
    )


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
