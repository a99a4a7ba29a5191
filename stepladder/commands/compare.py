"""Search methods compared at equal budgets of generated tokens: what ``stepladder eval`` does.

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
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from stepladder.commands.compare_shard import compare_shard
from stepladder.commands.solve import DEFAULT_RUN, choose_models, read_option, token_simulations
from stepladder.data.metrics import answers as metrics
from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import atomic_write_text
from stepladder.loops.assembly.devices import gpus_per_worker, num_workers
from stepladder.loops.assembly.policies import with_date
from stepladder.loops.assembly.problems import build_problems, check_verifier, load_split
from stepladder.loops.config.run import Config
from stepladder.loops.runs.comparison_results import (
    COMPARISON_SCHEMA_VERSION,
    CellCosts,
    CellFacts,
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
from stepladder.loops.runs.json_records import read_json
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Task, WorkerPool, worker_pool
from stepladder.loops.stages.context import Models
from stepladder.loops.stages.failures import check_stage
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, LabelledProblem, Provenance

REFERENCE = "greedy"
"""The method that is always run: what the policy does without any search."""
DEFAULT_METHODS = ("mcts", "beam", "best-of-n", "weighted-vote", "majority")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A method that is compared, under its name in tables and plots."""

    label: str
    """The method and its changed settings, as the user wrote them: ``beam,wave=8``."""
    method: SearchMethod
    """The method."""

    @property
    def is_point(self) -> bool:
        """Whether no budget changes what it does."""
        return self.method.samples_solutions and self.method.sampling.temperature == 0

    @property
    def is_scheduled(self) -> bool:
        """Whether it has to know its simulations beforehand."""
        return self.method.selection.type_name == "gumbel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared, and where it is kept."""

    config: Config
    """Format, limits, grading and device."""
    policy: str
    """Directory or hub id of the policy."""
    prm: tuple[str, ...]
    """Directories of the PRMs, of which several make an ensemble; empty compares without one."""
    source: str
    """Where the problems come from, for people."""
    problems: Sequence[LabelledProblem]
    """The problems with their answers, which only the grading sees; at least one."""
    contenders: Sequence[Contender]
    """The methods; every other one is set against the first that is no point."""
    budgets: Sequence[int]
    """Generated tokens per problem, ascending."""
    num_seeds: int
    """Searches of each problem at each budget, >= 1; their seeds are 0, 1, ..."""
    out: Path
    """Directory of the cells and results."""

    def shards(self) -> list[list[LabelledProblem]]:
        """Return the problems cut into shards, in their order."""
        size = self.config.run.shard_size
        return [list(self.problems[begin : begin + size]) for begin in range(0, len(self.problems), size)]

    def cells(self, contender: Contender) -> Iterator["Cell"]:
        """Yield the cells of a method, seed by seed; a point has one."""
        if contender.is_point:
            yield Cell(contender=contender, tokens=None, seed=0)
            return
        for seed in range(self.num_seeds):
            for tokens in self.budgets:
                yield Cell(contender=contender, tokens=tokens, seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One method at one budget with one seed."""

    contender: Contender
    tokens: int | None
    """The budget; None for a point."""
    seed: int
    is_pilot: bool = False
    """Whether it only counts the expansions that the budget pays for."""

    def folder(self, out: Path) -> Path:
        """Return where its files lie."""
        name = re.sub(r"[^\w.,=-]", "_", self.contender.label)
        budget = "any" if self.tokens is None else str(self.tokens)
        return out / "cells" / name / budget / ("pilot" if self.is_pilot else f"seed-{self.seed}")


def read_contenders(texts: Sequence[str]) -> list[Contender]:
    """Return the methods that a user names, each once, and the reference.

    Args:
        texts: Each a method with settings that differ from its defaults, as ``beam,wave=8``; ``all`` stands for every method. None of them
            stands for ``DEFAULT_METHODS``.

    Raises:
        ConfigError: If a method or setting is unknown or impossible.
    """
    named = [name for text in (texts or DEFAULT_METHODS) for name in (METHODS if text == "all" else [text])]
    return [_contender(text) for text in dict.fromkeys([*named, REFERENCE])]


def _contender(text: str) -> Contender:
    name, *options = text.split(",")
    return Contender(label=text, method=resolve_method(name, **dict(map(read_option, options))))


def read_budgets(text: str) -> list[int]:
    """Return budgets written as ``64,128,256``, ascending, each once.

    Raises:
        ConfigError: If one is no whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--tokens: must be whole numbers above 0 with commas between them, such as 64,128,256: got {text!r}")
    return sorted(set(map(int, parts)))


def resolve_comparison(
    *,
    problems: Path | None,
    split: str,
    limit: int | None,
    run: Path | None,
    number: int | None,
    policy: str | None,
    prm: Sequence[str],
    methods: Sequence[str],
    tokens: str,
    num_seeds: int,
    overrides: Sequence[str],
    out: Path,
) -> Comparison:
    """Find problems and models, and check the settings.

    Args:
        problems: JSONL or Parquet file with answers; None takes the run's own.
        split: Which of the run's problems: ``train``, ``held_out`` or ``test``.
        limit: Use at most so many problems.
        run: As in ``choose_models``.
        number: As in ``choose_models``.
        policy: As in ``choose_models``.
        prm: As in ``choose_models``.
        methods: As in ``read_contenders``.
        tokens: As in ``read_budgets``.
        num_seeds: Searches of each problem at each budget, >= 1.
        overrides: As in ``choose_models``.
        out: Directory of the cells and results.

    Raises:
        ConfigError, DataFormatError, CheckpointError: If settings, problems or models cannot be used.
    """
    contenders, budgets = read_contenders(methods), read_budgets(tokens)
    config, chosen_policy, chosen_prm = choose_models(run=run, policy=policy, prm=prm, overrides=overrides, number=number)
    check_verifier(config.problems)
    if problems is not None:
        loaded = load_split(config.problems, str(problems), limit=limit, split=config.problems.test_split)
    elif policy is None:
        splits = build_problems(config.problems, seed=config.run.seed)
        if split not in splits:
            raise ConfigError(f"--split: must be one of {', '.join(splits)}: got {split!r}")
        loaded = splits[split][:limit]
    else:
        raise ConfigError("eval: a policy of its own has no problems: got no PROBLEMS -- name a file with questions and answers")
    return Comparison(
        config=config,
        policy=chosen_policy,
        prm=chosen_prm,
        source=str(problems or f"{run or DEFAULT_RUN}: {split}"),
        problems=loaded,
        contenders=contenders,
        budgets=budgets,
        num_seeds=num_seeds,
        out=out,
    )


def run_comparison(comparison: Comparison, *, display: ProgressDisplay, pool: WorkerPool | None = None) -> ComparisonResults:
    """Run the cells that are missing, write ``results.json``, and return what it holds.

    Args:
        comparison: What to compare.
        display: Where progress is shown.
        pool: Workers to use; None starts those that the configuration asks for.

    Raises:
        CheckpointError: If the directory holds another comparison.
        BackendError: If a model engine or a worker fails, or every sample did.
    """
    earlier = _earlier_config(comparison.out / "eval.json")
    comparison = replace(comparison, config=with_date(comparison.config, comparison.policy, earlier=earlier))
    facts = _claim(comparison)
    if pool is None:
        section, gpus = comparison.config.run, gpus_per_worker(comparison.config)
        with worker_pool(num_workers(comparison.config), threads=section.threads, gpus_each=gpus) as started:
            _fill(comparison, started, display)
    else:
        _fill(comparison, pool, display)
    _check_failures(comparison, display)
    results = _results(comparison, facts)
    atomic_write_text(comparison.out / "results.json", json.dumps(results.to_dict()) + "\n")
    return results


def _check_failures(comparison: Comparison, display: ProgressDisplay) -> None:
    """Show how many samples failed; where all of them did, the figures would be those of no method."""
    cells = [cell for contender in comparison.contenders for cell in comparison.cells(contender)]
    cells += [_pilot(each, tokens) for each in comparison.contenders if each.is_scheduled for tokens in comparison.budgets]
    failures = check_stage([path for cell in cells for path, _ in _shards(comparison, cell)], "eval")
    if failures.num_failed:
        display.say(f"eval: {failures.num_failed} samples failed, the first with: {failures.first_message}")


def _earlier_config(path: Path) -> Config | None:
    """Return the settings of an evaluation that is continued; None for a new one, and where the file is broken, which is refused later."""
    try:
        return Config.model_validate(_read_facts(path).config)
    except (CheckpointError, ValueError):
        return None


def _claim(comparison: Comparison) -> ComparisonFacts:
    """Write what is compared, or check that the directory is of the same comparison; methods, budgets and seeds may be added later."""
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
    # Where problems and models lie may change, what they are may not.
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


def _fill(comparison: Comparison, pool: WorkerPool, display: ProgressDisplay) -> None:
    """Run what is missing: pilots first, since schedules need them, then the cells, one seed after the other."""
    scheduled = [contender for contender in comparison.contenders if contender.is_scheduled]
    _work(comparison, [_pilot(contender, tokens) for contender in scheduled for tokens in comparison.budgets], pool, display, "pilots")
    cells = [cell for contender in comparison.contenders for cell in comparison.cells(contender)]
    _work(comparison, sorted(cells, key=lambda cell: cell.seed), pool, display, "searches")


def _pilot(contender: Contender, tokens: int | None) -> Cell:
    return Cell(contender=contender, tokens=tokens, seed=0, is_pilot=True)


def _work(comparison: Comparison, cells: Sequence[Cell], pool: WorkerPool, display: ProgressDisplay, stage: str) -> None:
    tasks, total = [], 0
    for cell in cells:
        budget = _budget(comparison, cell)
        facts = _cell_facts(cell, budget)
        for path, problems in _shards(comparison, cell):
            if path.exists():
                CellShard.load(path, facts)
                continue
            total += len(problems)
            tasks.append(
                Task.of(
                    compare_shard,
                    config=comparison.config,
                    models=_models(comparison, cell),
                    problems=problems,
                    method=cell.contender.method,
                    budget=budget,
                    facts=facts,
                    out=path,
                    stage=stage,
                )
            )
    if tasks:
        with display.stages({stage: total}) as on_progress:
            pool.run(tasks, on_progress=on_progress)


def _shards(comparison: Comparison, cell: Cell) -> list[tuple[Path, list[LabelledProblem]]]:
    """Return the shards of a cell: where each lies, and its problems."""
    folder = cell.folder(comparison.out)
    return [(folder / f"shard-{index:04d}.json", problems) for index, problems in enumerate(comparison.shards())]


def _models(comparison: Comparison, cell: Cell) -> Models:
    provenance = Provenance(
        round=0, policy_version=0, scorer_version=None, seed=cell.seed, config_hash=comparison.config.hash(), renderer_hash=""
    )
    return Models(policy=comparison.policy, prm=comparison.prm, provenance=provenance)


def _budget(comparison: Comparison, cell: Cell) -> Budget:
    section = comparison.config.search
    num_simulations = token_simulations(cell.tokens) if cell.tokens else 1
    if cell.is_pilot and cell.tokens:
        # A sample takes a token at least; what a pilot visits beyond its expansions is not counted.
        num_simulations = max(cell.tokens // cell.contender.method.options()["num_children"], 1)
    elif cell.contender.is_scheduled:
        pilot = [row for shard in _read_cell(comparison, _pilot(cell.contender, cell.tokens)) for row in shard.rows]
        num_simulations = max(round(float(np.mean([row.policy_calls for row in pilot]))), 1)
    return Budget(
        num_simulations=num_simulations,
        max_tokens=cell.tokens,
        max_depth=section.max_depth,
        max_step_tokens=section.max_step_tokens,
    )


def _cell_facts(cell: Cell, budget: Budget) -> CellFacts:
    method = cell.contender.method
    settings = {"name": method.name, **method.all_settings()}
    return CellFacts(method=cell.contender.label, settings=settings, budget=asdict(budget), seed=cell.seed)


def _read_cell(comparison: Comparison, cell: Cell) -> list[CellShard]:
    facts = _cell_facts(cell, _budget(comparison, cell))
    return [CellShard.load(path, facts) for path, _ in _shards(comparison, cell)]


def _results(comparison: Comparison, facts: ComparisonFacts) -> ComparisonResults:
    """Return the figures of every method and budget, and the outcome of every search."""
    shares: dict[tuple[str, int | None], list[float]] = {}
    figures: list[MethodFigures] = []
    outcomes: list[Outcome] = []
    baseline = next((contender.label for contender in comparison.contenders if not contender.is_point), None)
    for contender in comparison.contenders:
        for tokens in [None] if contender.is_point else comparison.budgets:
            cells = [cell for cell in comparison.cells(contender) if cell.tokens == tokens]
            shards = [_read_cell(comparison, cell) for cell in cells]
            shares[contender.label, tokens] = _shares(shards)
            rival = None if contender.label == baseline or baseline is None else shares.get((baseline, tokens))
            figures.append(_figures(contender, tokens, shards, rival))
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


def _figures(contender: Contender, tokens: int | None, cells: Sequence[Sequence[CellShard]], baseline: list[float] | None) -> MethodFigures:
    """Return the figures of one method at one budget over its seeds.

    Args:
        contender: The method.
        tokens: The budget.
        cells: The shards of each seed.
        baseline: Share of right answers of each problem with the method that it is set against; None without one.
    """
    shares, rows = _shares(cells), [row for shards in cells for row in _rows(shards)]
    costs = CellCosts.sum([shard.costs for shards in cells for shard in shards])
    generated = float(np.mean([row.generated_tokens for row in rows]))
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
    )
