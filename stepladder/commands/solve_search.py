"""The searches of ``solve``: of one process, or spread over workers in shards of questions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from stepladder.commands.solve_report import Row, answer_row
from stepladder.commands.solve_settings import SolveSettings, bare_config
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.policies import DISCRIMINATOR, build_policy, build_renderer, end_observations
from stepladder.loops.assembly.problems import build_verifier, vote_keys
from stepladder.loops.assembly.search import search_engine
from stepladder.loops.assembly.workers import existing_paths, open_workers, wants_workers
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.token_use import TokenUse, unique_tokens
from stepladder.loops.runs.workers import Progress, Task, report_progress, worker_models
from stepladder.mcts.consistency import Discriminator
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.warm_up import compile_loops
from stepladder.types import Failures, Problem, Provenance, SearchResult

_STAGE = "questions"

Answer = tuple[Row, dict[str, Any] | None]
"""The row of a question, and its tree where trees are wanted."""


class Spent(NamedTuple):
    """The work of some searches."""

    failures: Failures
    """Samples that failed."""
    seconds: float
    """Time of the searches."""
    use: TokenUse
    """Tokens that the backends forwarded."""


class SolvedShard(NamedTuple):
    """The answers to some questions, as a worker returns them."""

    answers: list[Answer]
    """One for every question, in the order in which their searches ended."""
    spent: Spent
    """The work."""


def search_questions(
    settings: SolveSettings,
    problems: Sequence[Problem],
    *,
    open_ids: set[str],
    wants_trees: bool,
    keep: Callable[[Sequence[Answer]], None],
    display: ProgressDisplay | None,
    on_loaded: Callable[[], None] = lambda: None,
) -> Spent:
    """Search questions in this process, or in the workers that the settings ask for.

    Workers take shards of ``run.shard_size`` questions. A shard is the same whatever was answered before, and answers of workers are kept
    shard by shard. So a stopped call ends with the bytes of one that was never stopped, whatever the number and the place of the workers.

    Args:
        settings: Models, method and budget.
        problems: All questions, in order.
        open_ids: Ids of the questions that have no answer yet.
        wants_trees: Whether the trees are wanted.
        keep: Takes answers as soon as they are there.
        display: Where progress is shown; None shows none.
        on_loaded: Called when models are loaded, and before ``keep``; by workers more than once.

    Raises:
        ConfigError, CheckpointError: As for ``search_engine`` and ``open_workers``.
        BackendError: If a worker died.
    """
    shards = _shards(problems, settings.config.run.shard_size, open_ids)
    shown = nullcontext(_ignore) if display is None else display.stages({_STAGE: len(open_ids)})
    if wants_workers(settings.config) and (len(shards) > 1 or settings.config.run.cluster != "local"):
        return _search_spread(settings, shards, wants_trees=wants_trees, keep=keep, display=display, on_loaded=on_loaded)
    missing = [problem for problem in problems if problem.id in open_ids]
    with LoadedModels() as models, shown as report:
        return _search_here(
            settings,
            models,
            missing,
            wants_trees=wants_trees,
            keep=lambda answer: keep([answer]),
            on_progress=report,
            on_loaded=on_loaded,
        )


def _shards(problems: Sequence[Problem], size: int, open_ids: set[str]) -> list[list[Problem]]:
    """Cut questions into shards by their place, and return what is open of each."""
    cut = [problems[begin : begin + size] for begin in range(0, len(problems), size)]
    return [missing for shard in cut if (missing := [problem for problem in shard if problem.id in open_ids])]


def _search_spread(
    settings: SolveSettings,
    shards: Sequence[list[Problem]],
    *,
    wants_trees: bool,
    keep: Callable[[Sequence[Answer]], None],
    display: ProgressDisplay | None,
    on_loaded: Callable[[], None],
) -> Spent:
    """Search shards in workers."""
    tasks = [Task.of(solve_shard, settings=settings, problems=shard, wants_trees=wants_trees) for shard in shards]
    say = _ignore if display is None else display.say
    named = {"policy": settings.policy, "--discriminator": settings.discriminator}
    named |= {f"PRM {number}": prm for number, prm in enumerate(settings.prm, 1)}

    def take(number: int, shard: SolvedShard) -> None:
        on_loaded()
        keep(shard.answers)

    with open_workers(settings.config, None, say=say, inputs=existing_paths(named)) as pool:
        begin = time.monotonic()
        shown = nullcontext(_ignore) if display is None else display.stages({_STAGE: sum(map(len, shards))})
        with shown as report:
            solved = pool.run(tasks, on_progress=report, on_result=take)
        seconds = time.monotonic() - begin
    spent = [shard.spent for shard in solved]
    return Spent(Failures.sum(each.failures for each in spent), seconds, TokenUse.sum([each.use for each in spent]))


def solve_shard(*, settings: SolveSettings, problems: list[Problem], wants_trees: bool) -> SolvedShard:
    """Search a shard of questions in a worker.

    Args:
        settings: Models, method and budget.
        problems: The questions.
        wants_trees: Whether their trees are wanted.
    """
    answers: list[Answer] = []
    spent = _search_here(settings, worker_models(), problems, wants_trees=wants_trees, keep=answers.append, on_progress=report_progress)
    return SolvedShard(answers, spent)


def _search_here(
    settings: SolveSettings,
    models: LoadedModels,
    problems: list[Problem],
    *,
    wants_trees: bool,
    keep: Callable[[Answer], None],
    on_progress: Callable[[Progress], None],
    on_loaded: Callable[[], None] = lambda: None,
) -> Spent:
    """Search questions with the models of this process, and hand every answer on when it is there."""
    questions = {problem.id: problem.question for problem in problems}
    failures: list[Failures] = []
    num_unique = 0
    with answer_keys(settings.config.problems) as key_of:
        engine, discriminator = build_engine(settings, models, problems, key_of), build_discriminator(settings, models, key_of)
        on_loaded()
        # Importing and loading models takes seconds, which are not part of a search's cost.
        begin = time.monotonic()
        for result, reviewing in search_reviewed(engine, discriminator, problems):
            num_unique += unique_tokens(result.tree)
            failures.append(result.failures)
            row = answer_row(result, questions[result.problem_id], discriminator_tokens=reviewing)
            keep((row, result.tree.to_dict() if wants_trees else None))
            on_progress(Progress(stage=_STAGE, items=1, tokens=result.tree.generated_tokens))
        end_observations(engine.policy)
        seconds = time.monotonic() - begin
    return Spent(Failures.sum(failures), seconds, TokenUse.of(engine.policy, engine.scorer, unique_tokens=num_unique))


def _ignore(_: Any) -> None:
    pass


@contextmanager
def answer_keys(config: ProblemsConfig) -> Iterator[Callable[[str], str]]:
    """Yield the function that gives the canonical form of answers, without any problems."""
    with build_verifier(config, []) as verifier:
        yield vote_keys(verifier)


def build_engine(settings: SolveSettings, models: LoadedModels, problems: Sequence[Problem], key_of: Callable[[str], str]) -> SearchEngine:
    """Return the engine of a search, with its models loaded; errors as for ``search_engine``."""
    config = settings.config
    if settings.budget.max_seconds is not None:
        compile_loops(settings.method, scored=bool(settings.prm))
    return search_engine(
        config,
        models,
        problems,
        policy=settings.policy,
        prm=settings.prm,
        method=settings.method,
        budget=settings.budget,
        key_of=key_of,
        provenance=Provenance(
            round=0, policy_version=0, scorer_version=None, seed=settings.seed, config_hash=config.hash(), renderer_hash=""
        ),
    )


def search_reviewed(
    engine: SearchEngine, discriminator: Discriminator | None, problems: Sequence[Problem]
) -> Iterator[tuple[SearchResult, int | None]]:
    """Yield results, and the tokens that a discriminator generated to review them."""
    by_id = {problem.id: problem for problem in problems}
    for result in engine.search(problems):
        if discriminator is None:
            yield result, None
            continue
        before = discriminator.generated_tokens
        reviewed = discriminator.review(by_id[result.problem_id], result)
        yield reviewed, discriminator.generated_tokens - before


def build_discriminator(settings: SolveSettings, models: LoadedModels, key_of: Callable[[str], str]) -> Discriminator | None:
    """Return the second model, always on the embedded engine, because the other backends may hold only one model."""
    directory = settings.discriminator
    if directory is None:
        return None
    from stepladder.lm.loading import has_format

    base = settings.config
    own = bare_config(directory).format if has_format(directory) else base.format
    config = base.model_copy(update={"format": own, "policy": base.policy.model_copy(update={"backend": "transformers"})})
    return Discriminator(
        build_policy(config, models, directory, role=DISCRIMINATOR),
        build_renderer(config, directory),
        key_of=key_of,
        budget=settings.budget,
        seed=settings.seed,
    )
