"""The cells of a comparison: one method at one budget with one seed each. Those that are missing are run, the others are read."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stepladder.commands.compare_shard import compare_shard
from stepladder.commands.comparison import Cell, Comparison, Contender
from stepladder.loops.assembly.search import step_limit, token_simulations
from stepladder.loops.runs.comparison_results import (
    CellFacts,
    CellShard,
)
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Task, Workers
from stepladder.loops.stages.context import Models
from stepladder.loops.stages.failures import check_stage
from stepladder.types import Budget, LabelledProblem, Provenance


def fill_cells(comparison: Comparison, pool: Workers, display: ProgressDisplay) -> None:
    """Run the missing parts: pilots first, because schedules need them, then the cells, one seed after the other."""
    scheduled = [contender for contender in comparison.contenders if contender.is_scheduled]
    _work(comparison, [_pilot(contender, tokens) for contender in scheduled for tokens in comparison.budgets], pool, display, "pilots")
    cells = [cell for contender in comparison.contenders for cell in comparison.cells(contender)]
    _work(comparison, sorted(cells, key=lambda cell: cell.seed), pool, display, "searches")


def check_failures(comparison: Comparison, display: ProgressDisplay) -> None:
    """Show how many samples failed. If all failed, the figures would mean nothing.

    Raises:
        BackendError: If every sample failed; the cells are then gone.
    """
    cells = [cell for contender in comparison.contenders for cell in comparison.cells(contender)]
    cells += [_pilot(each, tokens) for each in comparison.contenders if each.is_scheduled for tokens in comparison.budgets]
    failures = check_stage([path for cell in cells for path, _ in _shards(comparison, cell)], "eval")
    if failures.num_failed:
        display.say(f"eval: {failures.num_failed} samples failed, the first with: {failures.first_message}")


def _pilot(contender: Contender, tokens: int | None) -> Cell:
    return Cell(contender=contender, tokens=tokens, seed=0, is_pilot=True)


def _work(comparison: Comparison, cells: Sequence[Cell], pool: Workers, display: ProgressDisplay, stage: str) -> None:
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
    """Return the shards of a cell: the file of each, and its problems."""
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
        # A sample takes at least one token. Visits of a pilot besides its expansions are not counted.
        num_simulations = max(cell.tokens // cell.contender.method.options()["num_children"], 1)
    elif cell.contender.is_scheduled:
        pilot = [row for shard in read_cell(comparison, _pilot(cell.contender, cell.tokens)) for row in shard.rows]
        num_simulations = max(round(float(np.mean([row.policy_calls for row in pilot]))), 1)
    return Budget(
        num_simulations=num_simulations,
        max_tokens=cell.tokens,
        max_depth=section.max_depth,
        max_step_tokens=step_limit(section, cell.contender.method),
    )


def _cell_facts(cell: Cell, budget: Budget) -> CellFacts:
    method = cell.contender.method
    settings = {"name": method.name, **method.all_settings()}
    return CellFacts(method=cell.contender.label, settings=settings, budget=asdict(budget), seed=cell.seed)


def read_cell(comparison: Comparison, cell: Cell) -> list[CellShard]:
    """Return the shards of a finished cell. Errors are those of ``CellShard.load``."""
    facts = _cell_facts(cell, _budget(comparison, cell))
    return [CellShard.load(path, facts) for path, _ in _shards(comparison, cell)]
