"""The shards of rows that a round's PRM learns from."""

from pathlib import Path

from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.kinds import ROLLOUT_STEP_PAIRS, ROLLOUT_VALUES, STEP_PAIRS, VALUES, prm_kind

_OF_TREES = {ROLLOUT_VALUES.name: VALUES.name, ROLLOUT_STEP_PAIRS.name: STEP_PAIRS.name}
"""The rows of trees that are of the same sort as rows of samples."""


def prm_shards(context: RoundContext, number: int) -> list[Path]:
    """Return the shards that a round's PRM learns from, including imported value rows if the run learns from values."""
    run, kind = context.run, prm_kind(context.config)
    rounds = list(range(1, number + 1)) if context.config.prm.data == "accumulate" else [number]
    of_trees: list[Path] = []
    if context.config.prm.samples_first and kind.name in _OF_TREES:
        # The round has no trees yet; those of the rounds before are as good as their samples, and may hold them already.
        of_trees = run.kept_shards(_OF_TREES[kind.name], rounds[:-1])
        if context.config.search.start == "first-samples":
            rounds = [number]
    shards = run.kept_shards(kind.name, rounds) + of_trees
    return shards + (run.imported(VALUES.name) if kind.stored is VALUES.stored else [])
