"""Comparison of search methods at equal budgets of generated tokens, for ``stepladder eval``.

    OUT/
      eval.json                                       problems, models and settings; another comparison in the same place is refused
      cells/METHOD/TOKENS/seed-N/shard-0000.json      graded rows and their costs; a file that exists is whole and is not made again
      results.json                                    figures of every method and budget, and the outcome of every problem

A cell is one method at one budget with one seed. Its search sees no answers and is graded afterwards. A search cannot stop in the middle
of a step, so it may go beyond its budget, by its first wave or by the last expansion. What it learns there does not count: its answer is
the one it would have given when the budget was spent. Budgets are therefore equal to the token, whatever a method asks for at once.

Of a method that draws whole solutions, the draws count that fit. One whose schedule is made for a number of simulations (gumbel) is run at
each budget once before, as a pilot, and gets the mean number that the budget paid for. A greedy method takes what it takes, whatever the
budget, and is a point.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from stepladder.commands.comparison import Cell, Comparison, Contender
from stepladder.commands.comparison_cells import check_failures, fill_cells, read_cell
from stepladder.data.metrics import answers as metrics
from stepladder.errors import CheckpointError
from stepladder.files import atomic_write_text, read_json
from stepladder.hub import local_directory
from stepladder.lm.flops import ModelFlops, flops_of_files
from stepladder.loops.assembly.policies import with_date
from stepladder.loops.assembly.workers import open_workers
from stepladder.loops.config.run import Config
from stepladder.loops.runs.comparison_results import (
    COMPARISON_SCHEMA_VERSION,
    CellCosts,
    CellRow,
    CellShard,
    ComparisonFacts,
    ComparisonResults,
    MethodFigures,
    ModelFacts,
    Outcome,
    ProblemsFacts,
)
from stepladder.loops.runs.directory import software
from stepladder.loops.runs.flops import SearchFlops
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Workers
from stepladder.types import LabelledProblem


def run_comparison(comparison: Comparison, *, display: ProgressDisplay, pool: Workers | None = None) -> ComparisonResults:
    """Run the missing cells, write ``results.json``, and return its content.

    Args:
        comparison: The comparison.
        display: Shows progress.
        pool: Workers to use; None starts those of the configuration.

    Raises:
        CheckpointError: If the directory holds another comparison.
        BackendError: If a model engine or a worker fails, or every sample did.
    """
    earlier = _earlier_config(comparison.out / "eval.json")
    comparison = replace(comparison, config=with_date(comparison.config, comparison.policy, earlier=earlier))
    facts = _claim(comparison)
    if pool is None:
        with open_workers(comparison.config, comparison.out, say=display.say) as started:
            fill_cells(comparison, started, display)
    else:
        fill_cells(comparison, pool, display)
    check_failures(comparison, display)
    results = _results(comparison, facts, _flops(comparison))
    atomic_write_text(comparison.out / "results.json", json.dumps(results.to_dict()) + "\n")
    return results


def _earlier_config(path: Path) -> Config | None:
    """Return the settings of a continued evaluation; None for a new one, and for a broken file, which is refused later."""
    try:
        return Config.model_validate(_read_facts(path).config)
    except (CheckpointError, ValueError):
        return None


def _claim(comparison: Comparison) -> ComparisonFacts:
    """Write the description of a comparison, or check that the directory has the same one. You may add methods, budgets and seeds later."""
    if comparison.out.is_file():
        raise CheckpointError(f"{comparison.out}: must be a directory or not exist: it is a file -- choose another --out")
    path, config = comparison.out / "eval.json", comparison.config
    facts = ComparisonFacts(
        schema_version=COMPARISON_SCHEMA_VERSION,
        **asdict(software()),
        problems=ProblemsFacts(source=comparison.source, count=len(comparison.problems), hash=_problems_hash(comparison.problems)),
        policy=ModelFacts(path=comparison.policy, hash=_model_hash(comparison.policy)),
        prm=tuple(ModelFacts(path=prm, hash=_model_hash(prm)) for prm in comparison.prm),
        config_hash=config.hash(),
        config=config.model_dump(mode="json"),
    )
    if path.exists():
        _check_same(path, facts, config)
    elif comparison.out.exists() and any(not path.name.startswith(".") for path in comparison.out.iterdir()):
        raise CheckpointError(f"{comparison.out}: must be empty or hold an evaluation: it holds other files -- choose another --out")
    else:
        atomic_write_text(path, json.dumps(facts.to_dict(), indent=2) + "\n")
    return facts


def _check_same(path: Path, facts: ComparisonFacts, config: Config) -> None:
    found = _read_facts(path)
    # The paths of problems and models may change, but not their contents.
    pairs = {
        "problems": (found.problems.hash, facts.problems.hash),
        "policy": (found.policy.hash, facts.policy.hash),
        "prm": ([prm.hash for prm in found.prm], [prm.hash for prm in facts.prm]),
    }
    differences = [name for name, (theirs, ours) in pairs.items() if theirs != ours]
    if found.config_hash != facts.config_hash:
        differences += _changed_settings(path, found, config)
    if differences:
        raise CheckpointError(
            f"{path.parent}: holds an evaluation that differs in {'; '.join(differences)}: only methods, budgets and seeds may be added to "
            "it -- use the same problems, models and settings, or another --out"
        )


def _read_facts(path: Path) -> ComparisonFacts:
    plain = read_json(path, what="what an evaluation of this version wrote", remedy="choose another --out")
    return ComparisonFacts.from_dict(plain, path)


def _changed_settings(path: Path, found: ComparisonFacts, config: Config) -> list[str]:
    try:
        theirs = Config.model_validate(found.config)
    # Settings of another version do not pass the checks of this one.
    except ValueError as error:
        raise CheckpointError(f"{path}: must be what an evaluation of this version wrote: {error} -- choose another --out") from None
    return config.differences(theirs)[:3] or ["config"]


def _problems_hash(problems: Iterable[LabelledProblem]) -> str:
    return hashlib.blake2b(json.dumps([asdict(problem) for problem in problems]).encode(), digest_size=8).hexdigest()


def _model_hash(source: str) -> str:
    """Return a hash of the files of a model directory, or the name of a model elsewhere."""
    if not Path(source).is_dir():
        return source
    state = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in Path(source).rglob("*") if path.is_file()):
        state.update(str(path.relative_to(source)).encode())
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def _flops(comparison: Comparison) -> SearchFlops:
    """Return the costs of the models; those of a model that is not on this machine are not known."""

    def known(source: str) -> ModelFlops | None:
        directory = local_directory(source)
        # A PRM may be a head on the policy's body, without a model of its own.
        if directory is None or not (directory / "config.json").is_file():
            return None
        return flops_of_files(source, trust_remote_code=comparison.config.policy.trust_remote_code)

    return SearchFlops(policy=known(comparison.policy), prm=known(comparison.prm[0]) if len(comparison.prm) == 1 else None)


def _results(comparison: Comparison, facts: ComparisonFacts, flops: SearchFlops) -> ComparisonResults:
    """Return the figures of every method and budget, and the outcome of every search."""
    shares: dict[tuple[str, int | None], list[float]] = {}
    figures: list[MethodFigures] = []
    outcomes: list[Outcome] = []
    baseline = next((contender.label for contender in comparison.contenders if not contender.is_point), None)
    for contender in comparison.contenders:
        for tokens in [None] if contender.is_point else comparison.budgets:
            cells = [cell for cell in comparison.cells(contender) if cell.tokens == tokens]
            shards = [read_cell(comparison, cell) for cell in cells]
            shares[contender.label, tokens] = _shares(shards)
            rival = None if contender.label == baseline or baseline is None else shares.get((baseline, tokens))
            figures.append(_figures(contender, tokens, shards, rival, flops))
            outcomes += [outcome for cell, read in zip(cells, shards, strict=True) for outcome in _outcomes(cell, read)]
    return ComparisonResults(
        facts=facts,
        methods={contender.label: contender.method.settings() for contender in comparison.contenders},
        budgets=tuple(comparison.budgets),
        seeds=comparison.num_seeds,
        baseline=baseline,
        figures=tuple(figures),
        outcomes=tuple(outcomes),
    )


def _outcomes(cell: Cell, shards: Sequence[CellShard]) -> Iterator[Outcome]:
    for shard in shards:
        for row in shard.rows:
            yield Outcome(
                method=cell.contender.label,
                budget=cell.tokens,
                seed=cell.seed,
                problem_id=row.problem_id,
                answer=row.answer,
                correct=row.correct,
                generated_tokens=row.generated_tokens,
                stop_reason=row.stop_reason,
            )


def _rows(shards: Sequence[CellShard]) -> list[CellRow]:
    return [row for shard in shards for row in shard.rows]


def _shares(cells: Sequence[Sequence[CellShard]]) -> list[float]:
    """Return the share of right answers of each problem over the seeds of a method."""
    tries_by_problem = zip(*(_rows(shards) for shards in cells), strict=True)
    return [float(np.mean([row.correct for row in tries])) for tries in tries_by_problem]


def _figures(
    contender: Contender,
    tokens: int | None,
    cells: Sequence[Sequence[CellShard]],
    baseline: list[float] | None,
    flops: SearchFlops,
) -> MethodFigures:
    """Return the figures of one method at one budget over its seeds.

    Args:
        contender: The method.
        tokens: The budget.
        cells: The shards of each seed.
        baseline: Share of right answers of each problem with the method that it is set against; None without one.
        flops: Costs of the models.
    """
    shares, rows = _shares(cells), [row for shards in cells for row in _rows(shards)]
    costs = CellCosts.sum([shard.costs for shards in cells for shard in shards])
    sampled = sum(row.generated_tokens for row in rows)
    operations = flops.of(forwarded=costs.policy_forwarded, sampled=sampled, prm_forwarded=costs.prm_forwarded)
    generated = sampled / len(rows)
    within = float(np.mean([row.generated_tokens if tokens is None else min(row.generated_tokens, tokens) for row in rows]))
    # The generator resamples problems for an interval only; its seed is fixed so that the same rows give the same figures.
    paired = None if baseline is None else metrics.paired_difference(baseline, shares, rng=np.random.default_rng(0))
    return MethodFigures(
        method=contender.label,
        budget=tokens,
        problems=len(shares),
        seeds=len(cells),
        accuracy=float(np.mean(shares)),
        interval=metrics.clustered_interval(shares, num_repeats=len(cells)),
        answered=float(np.mean([row.answer is not None for row in rows])),
        tokens=within,
        tokens_beyond=generated - within,
        seconds=costs.seconds / len(rows),
        policy_seconds=costs.policy_seconds / len(rows),
        prm_seconds=costs.prm_seconds / len(rows),
        prm_calls=costs.prm_calls / len(rows),
        policy_calls=float(np.mean([row.policy_calls for row in rows])),
        scored_tokens=float(np.mean([row.scored_tokens for row in rows])),
        simulations=float(np.mean([row.simulations for row in rows])),
        difference=None if paired is None else paired.difference,
        difference_interval=None if paired is None else paired.interval,
        credit=metrics.mean_credit([(row.correct, row.credit) for row in rows]),
        flops=None if operations is None else operations / len(rows),
    )
