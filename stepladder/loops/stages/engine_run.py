"""How a job runs a search engine: engine and grader of a shard, results in the order of the problems, and progress for people."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stepladder.loops.assembly.policies import LiveWeights, end_observations, keep_observations
from stepladder.loops.assembly.problems import OpenVerifier, build_verifier, vote_keys
from stepladder.loops.assembly.search import search_engine
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import ScoresConfig
from stepladder.loops.runs.live import INTERVAL_S, LiveTree, live_tree
from stepladder.loops.runs.workers import Progress, report_progress, worker_models
from stepladder.loops.stages.context import Models
from stepladder.mcts.engine import BudgetRule, SearchEngine, SearchEvent
from stepladder.mcts.problem_search import Samples
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, LabelledProblem, Problem, SearchResult


class OpenShard(NamedTuple):
    """What searches and grades a shard of problems."""

    engine: SearchEngine
    """The engine."""
    verifier: OpenVerifier
    """The grader, which holds the answers."""
    key_of: Callable[[str], str]
    """Canonical form of an answer, by which votes are counted."""


@contextmanager
def open_shard(
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    method: SearchMethod,
    budget: Budget | BudgetRule,
    out: Path,
    scores: ScoresConfig | None = None,
    labels: bool = False,
    tree_number: int = 0,
    live: LiveWeights | None = None,
) -> Iterator[OpenShard]:
    """Open the engine and the grader of a shard. The block searches, grades and stores the shard.

    The observations of a tool are kept beside the shard until the block has stored it; a block that fails leaves them for the next start.

    Args:
        config: The configuration.
        models: The models.
        problems: The shard.
        method: How to search.
        budget: Caps per problem.
        out: The file of the shard.
        scores: As for ``build_scorer``.
        labels: Whether the engine grades ends as it searches.
        tree_number: Trees of the same problems that were searched before.
        live: Searches in place of the policy of the models; None searches with that one.

    Raises:
        ConfigError, CheckpointError, DataFormatError: As for ``search_engine``, ``build_verifier`` and ``keep_observations``.
    """
    with build_verifier(config.problems, problems) as verifier:
        key_of = vote_keys(verifier)
        engine = search_engine(
            config,
            worker_models(),
            questions_of(problems),
            policy=models.policy if live is None else live,
            prm=models.prm,
            method=method,
            budget=budget,
            provenance=models.provenance,
            scores=scores,
            verifier=verifier if labels else None,
            key_of=key_of,
            tree_number=tree_number,
        )
        keep_observations(engine.policy, out)
        yield OpenShard(engine, verifier, key_of)
    end_observations(engine.policy)


def questions_of(problems: Sequence[LabelledProblem]) -> list[Problem]:
    """Return the problems as a search may see them."""
    return [labelled.problem for labelled in problems]


def run_engine(
    engine: SearchEngine, problems: Sequence[LabelledProblem], *, stage: str, first_samples: Mapping[str, Samples] | None = None
) -> list[SearchResult]:
    """Search problems and return the results in the order of the problems. Report progress under the name of the stage."""
    found = engine.search(questions_of(problems), first_samples=first_samples, on_progress=_SearchProgress(stage))
    by_id = {result.problem_id: result for result in found}
    return [by_id[labelled.problem.id] for labelled in problems]


_TREE_SHARE = 0.01
"""Largest share of a worker's time that goes into trees to be shown."""


class _SearchProgress:
    """An engine's callback that reports the progress since its last call, and now and then a tree that grows."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._next_tree = 0.0
        self._last = SearchEvent(problems_done=0, generated_tokens=0, solved=0)

    def __call__(self, event: SearchEvent) -> None:
        last, self._last = self._last, event
        report_progress(
            Progress(
                stage=self._stage,
                items=event.problems_done - last.problems_done,
                tokens=event.generated_tokens - last.generated_tokens,
                solved=event.solved - last.solved,
                tree=self._tree(event),
            )
        )

    def _tree(self, event: SearchEvent) -> LiveTree | None:
        """Return a tree to show if it is time for one, as seldom as its making needs to cost nothing."""
        begin = time.monotonic()
        if begin < self._next_tree:
            return None
        record = event.oldest_tree()
        shown = None if record is None else live_tree(record)
        now = time.monotonic()
        self._next_tree = now + max(INTERVAL_S, (now - begin) / _TREE_SHARE)
        return shown
