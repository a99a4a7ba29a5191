"""Turn searched trees into training rows, shard by shard, and count the kept and dropped rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from stepladder.files import atomic_write_text, read_json
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.results import LabelCounts
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.kinds import (
    ADVANTAGES,
    GRADED,
    PAIRS,
    ROLLOUTS,
    SOFT_TARGETS,
    STEP_PAIRS,
    TRACES,
    TREES,
    VALUES,
)
from stepladder.loops.stages.tree_rows import LabelSources, rows_of_trees


def label(context: RoundContext, number: int, best: BestModels) -> LabelCounts:
    """Turn the round's trees into training rows; return the counts, summed over shards."""
    path, run, config = context.run.round(number) / "labels.json", context.run, context.config
    if not path.exists():
        tasks = []
        # Samples from before the search are labelled in their own round, those of the new policy in the next.
        last = number if config.prm.samples_first else number - 1
        are_new = last == number or not round_config(context.run_config, last).prm.samples_first
        for index, _ in enumerate(context.shards("train")):
            rolled_out = [run.shard(earlier, ROLLOUTS.name, index) for earlier in range(1, last + 1)]
            sources = LabelSources(
                trees=run.shard(number, TREES.name, index),
                earlier=tuple(run.shard(earlier, TREES.name, index) for earlier in range(1, number)),
                rollouts=tuple(path for path in rolled_out if path.exists()),
                new_rollouts=tuple(path for path in rolled_out[-1:] if are_new and path.exists()),
                policy=run.policy_source(best.policy, context.run_config),
                earlier_prm=earlier_prm(context, number, best.prm),
            )
            out = {kind.name: run.shard(number, kind.name, index) for kind in _LABELLED}
            tasks.append(Task.of(label_shard, config=config, sources=sources, out=out))
        with context.stage(number, "label"):
            _write_counts(path, context.work(tasks, {}))
    return read_counts(path)


def label_imported(context: RoundContext, policy_version: int) -> None:
    """Turn imported trees into training rows in the same folder, with the counts of each data set."""
    config = context.run_config
    policy = context.run.policy_source(policy_version, config)
    for folder in sorted({path.parent.parent for path in context.run.imported(TREES.name)}):
        if (folder / "labels.json").exists():
            continue
        tasks = [
            Task.of(
                label_shard,
                config=config,
                sources=LabelSources(trees=trees, policy=policy),
                out={kind.name: folder / kind.name / trees.name for kind in _LABELLED},
            )
            for trees in sorted((folder / TREES.name).glob("shard-*.parquet"))
        ]
        _write_counts(folder / "labels.json", context.work(tasks, {}))


_LABELLED = (TRACES, SOFT_TARGETS, PAIRS, GRADED, ADVANTAGES, VALUES, STEP_PAIRS)
"""Kinds of rows that trees may give."""


def label_shard(*, config: Config, sources: LabelSources, out: dict[str, Path]) -> LabelCounts:
    """Turn a shard of trees into the rows that the models learn from; return the counts of kept and dropped rows.

    Args:
        config: The configuration.
        sources: Sources of the rows.
        out: File of each kind of rows, by its name: traces, soft targets, pairs, graded, advantages, values and
            step-pairs.
    """
    rows = rows_of_trees(config, sources)
    TRACES.write(out[TRACES.name], rows.all_traces)
    if rows.soft_targets is not None:
        SOFT_TARGETS.write(out[SOFT_TARGETS.name], rows.soft_targets.rows)
    PAIRS.write(out[PAIRS.name], rows.pairs.rows)
    VALUES.write(out[VALUES.name], rows.values.rows)
    if rows.graded is not None:
        GRADED.write(out[GRADED.name], rows.graded.rows)
    # While the policy is trained during the search, its rows are written there.
    if rows.advantages is not None and config.run.update_every is None:
        ADVANTAGES.write(out[ADVANTAGES.name], rows.advantages.rows)
    if rows.step_pairs is not None:
        STEP_PAIRS.write(out[STEP_PAIRS.name], rows.step_pairs)
    return rows.counts()


def earlier_prm(context: RoundContext, number: int, prm_version: int | None) -> str | None:
    """Return the best PRM before the one that guided a round's search; None without one, or if no setting needs it."""
    if not context.config.preference.reads_agreement:
        return None
    best = [row.best_prm for row in context.run.rows()[:number]]
    earlier = [version for version in best if version not in (None, prm_version)]
    return context.run.prm_source(earlier[-1], context.run_config) if earlier else None


def _write_counts(path: Path, shards: Sequence[LabelCounts]) -> None:
    atomic_write_text(path, json.dumps(LabelCounts.sum(shards).to_dict(), indent=2) + "\n")


def read_counts(path: Path) -> LabelCounts:
    """Return the counts of a ``labels.json``.

    Raises:
        CheckpointError: If the file is something else.
    """
    plain = read_json(path, what="the counts of labels", remedy="remove the file and run evolve again")
    return LabelCounts.from_dict(plain, path)
