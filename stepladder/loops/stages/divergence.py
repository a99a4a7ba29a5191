"""Log-probabilities of evaluation samples under the policy that a run began with, for the divergence from it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stepladder.lm.loaded_models import LoadedModels, Role
from stepladder.loops.config.run import Config
from stepladder.loops.runs.evaluation_rows import PoolRow
from stepladder.loops.stages.graded_rows import draws_of
from stepladder.tree_paths import ids_along, observations_along
from stepladder.types import SearchResult, TreeRecord

if TYPE_CHECKING:
    from stepladder.prm.served import TokenLogps


def with_start_logps(
    config: Config, models: LoadedModels, start: str, results: Sequence[SearchResult], rows: Sequence[PoolRow]
) -> list[PoolRow]:
    """Return rows of samples with the log-probability of every sample under a start policy.

    Args:
        config: The configuration.
        models: The models of this process.
        start: Directory or hub id of the start policy.
        results: The sampled trees, in the order of the rows.
        rows: Their rows, each with its samples in the order of the draws.
    """
    from stepladder.prm.checkpoints import load_bare_lm
    from stepladder.prm.served import CachedModel

    section = config.policy
    options = {"device": section.device, "dtype": section.dtype, "trust_remote_code": section.trust_remote_code}
    bare, head = models.weights(Role(kind="policy", number=1), ("bare", start, *options.values()), lambda: load_bare_lm(start, **options))
    model, found = CachedModel.of_language_model(bare, head), []
    for result, row in zip(results, rows, strict=True):
        logps = start_logps(result.tree, model)
        found.append(replace(row, samples=tuple(replace(each, start_logp=logp) for each, logp in zip(row.samples, logps, strict=True))))
        # Problems share nothing that is worth its memory.
        model.clear()
    return found


def start_logps(tree: TreeRecord, model: "TokenLogps") -> list[float]:
    """Return the log-probability of the sampled tokens of every draw of a tree, in nats; observations do not count."""
    begin, draws = len(tree.prompt_ids), draws_of(tree)
    paths = [(*tree.prompt_ids, *ids_along(tree, path)) for path in draws]
    logps = model.logps(paths, [begin] * len(paths))
    for path, each in zip(draws, logps, strict=True):
        for first, end in observations_along(tree, path, start=begin):
            each[first - begin : end - begin] = 0.0
    return [float(np.sum(each)) for each in logps]
