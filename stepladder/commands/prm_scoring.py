"""Scores of written solutions by a process reward model: in this process, or by workers, with the same bytes.

Solutions are scored in chunks that do not depend on who scores them. Finished chunks can be kept next to an output, so that a stopped
command continues.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepladder.commands.kept_work import START_OVER, KeptWork, Settings
from stepladder.commands.solve_progress import model_digest
from stepladder.data.datasets.labelled_solutions import StepwiseSolution
from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.checks import check_cluster
from stepladder.loops.assembly.workers import existing_paths, open_workers, wants_workers
from stepladder.loops.config.load import with_overrides
from stepladder.loops.config.models import PolicyConfig
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.config.run import Config
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Progress, Task, Workers, report_progress, worker_models
from stepladder.prm.sources import PRMSource, prm_members

if TYPE_CHECKING:
    from stepladder.prm.open import SolutionScorer

Scores = tuple[float | None, ...]
"""One score in [0, 1] or None per step of a solution."""
ScoreAll = Callable[[Sequence[StepwiseSolution]], list[Scores]]
"""Scores solutions, in their order."""

_CHUNK = 64
"""Solutions that are scored together."""
_KEPT_VERSION = 1
_STAGE = "solutions"
_SETTABLE = ("run.workers", "run.threads", "run.cluster", "run.ray.")


def worker_settings(source: PRMSource, overrides: Sequence[str]) -> Config:
    """Return a configuration that says where the work is done, and check that it can be done there.

    Args:
        source: The model.
        overrides: ``run.KEY=VALUE`` over the defaults, by which this process does the work.

    Raises:
        ConfigError: If a setting is of another kind, unknown or impossible, or the cluster cannot be used.
    """
    for text in overrides:
        if not text.startswith(_SETTABLE):
            raise ConfigError(
                f"--set: says who does the work, by run.workers, run.threads, run.cluster or run.ray: got {text!r} -- leave it out"
            )
    base = Config(
        problems=ProblemsConfig(train="", test=""), policy=PolicyConfig.model_validate({"model": source.model, "device": source.device})
    )
    config = with_overrides(base, list(overrides))
    check_cluster(config)
    return config


@contextmanager
def open_scoring(source: PRMSource, config: Config, *, display: ProgressDisplay, kept: Path | None = None) -> Iterator[ScoreAll]:
    """Yield the function that scores solutions, for as long as the block runs.

    Args:
        source: The model.
        config: Where the work is done, from ``worker_settings``.
        display: Shows progress.
        kept: File for finished chunks, of one call of the function; None keeps none. Whoever writes the output removes it.

    Raises:
        CheckpointError, ConfigError, BackendError: As for ``open_solution_scorer`` and ``open_workers``.
    """
    from stepladder.loops.assembly.prms import open_solution_scorer

    with ExitStack() as stack:

        def here() -> _Run:
            return _here(open_solution_scorer(source, stack.enter_context(LoadedModels())))

        if wants_workers(config):
            named = {f"--model {member}": member for member in prm_members(source.model)}
            named |= {"--spec": source.spec, "--reference": source.reference}
            pool = stack.enter_context(open_workers(config, None, say=display.say, inputs=existing_paths(named)))
            alone = here if config.run.cluster == "local" else None
            yield lambda solutions: _score(_by_workers(pool, source, alone), source, solutions, display, kept)
        else:
            run = here()
            yield lambda solutions: _score(run, source, solutions, display, kept)


_OnChunk = Callable[[int, list[Scores]], None]
_Run = Callable[[Sequence[Sequence[StepwiseSolution]], Callable[[Progress], None], _OnChunk], None]
"""Scores chunks, and calls the last argument with the place of each and its scores."""


def solution_split(source: PRMSource) -> str:
    """Return the text at which a solution in one piece is cut into steps.

    It is the step end of a model that reads the tokens of a policy, if its steps end at a text, else that of the spec.

    Raises:
        ConfigError, CheckpointError: As for ``PRMSource.resolve``.
    """
    from stepladder.lm.loading import has_format
    from stepladder.policy.prompts import StepFormat

    spec, member = source.resolve(), prm_members(source.model)[0]
    if spec.renderer_hash is None or not has_format(member):
        return spec.split
    stated = StepFormat.load(member)
    return stated.step_end if stated.steps == "text" else spec.split


def _here(scorer: "SolutionScorer") -> _Run:
    def run(chunks: Sequence[Sequence[StepwiseSolution]], on_progress: Callable[[Progress], None], on_chunk: _OnChunk) -> None:
        for number, chunk in enumerate(chunks):
            on_chunk(number, score_solutions(scorer, chunk))
            on_progress(Progress(stage=_STAGE, items=len(chunk)))

    return run


def _by_workers(pool: Workers, source: PRMSource, alone: Callable[[], _Run] | None) -> _Run:
    """Return what has workers score chunks; a single chunk is not worth a worker where this process can score it."""

    def run(chunks: Sequence[Sequence[StepwiseSolution]], on_progress: Callable[[Progress], None], on_chunk: _OnChunk) -> None:
        if len(chunks) == 1 and alone is not None:
            alone()(chunks, on_progress, on_chunk)
            return
        tasks = [Task.of(score_chunk, source=source, solutions=list(chunk)) for chunk in chunks]
        pool.run(tasks, on_progress=on_progress, on_result=on_chunk)

    return run


def score_chunk(*, source: PRMSource, solutions: list[StepwiseSolution]) -> list[Scores]:
    """Score solutions in a worker, which keeps the model from one chunk to the next."""
    from stepladder.loops.assembly.prms import open_solution_scorer

    scores = score_solutions(open_solution_scorer(source, worker_models()), solutions)
    report_progress(Progress(stage=_STAGE, items=len(solutions)))
    return scores


def score_solutions(scorer: "SolutionScorer", solutions: Sequence[StepwiseSolution]) -> list[Scores]:
    """Return the scores of the steps of every solution, some solutions at a time."""
    from stepladder.prm.reader import Solution

    asked = [Solution(question=each.question, steps=each.steps, place=each.place) for each in solutions]
    return [scores for begin in range(0, len(asked), _CHUNK) for scores in scorer.score(asked[begin : begin + _CHUNK])]


def _score(
    run: _Run, source: PRMSource, solutions: Sequence[StepwiseSolution], display: ProgressDisplay, kept: Path | None
) -> list[Scores]:
    """Score the chunks that an earlier call has not scored."""
    chunks = [solutions[begin : begin + _CHUNK] for begin in range(0, len(solutions), _CHUNK)]
    store = None if kept is None else KeptWork(path=kept, version=_KEPT_VERSION, noun="scores")
    facts = _facts(source, solutions)
    found = {} if store is None else _read(store, facts, chunks)
    missing = [number for number in range(len(chunks)) if number not in found]

    def keep(place: int, scores: list[Scores]) -> None:
        number = missing[place]
        found[number] = scores
        if store is not None:
            store.begin(facts)
            store.keep([{"chunk": number, "scores": scores}])

    if missing:
        with display.stages({_STAGE: sum(len(chunks[number]) for number in missing)}) as on_progress:
            run([chunks[number] for number in missing], on_progress, keep)
    return [scores for number in range(len(chunks)) for scores in found[number]]


def _read(store: KeptWork, facts: Settings, chunks: Sequence[Sequence[StepwiseSolution]]) -> dict[int, list[Scores]]:
    """Return the scores of the chunks that an earlier call has scored."""
    found: dict[int, list[Scores]] = {}
    for part in store.read(facts):
        number, scores = part.values.get("chunk"), part.values.get("scores")
        if not (isinstance(number, int) and 0 <= number < len(chunks) and isinstance(scores, list) and len(scores) == len(chunks[number])):
            raise DataFormatError(f"{part.place}: must hold scores of an earlier call: got {part.values!r:.80} -- {START_OVER}")
        found[number] = [tuple(each) for each in scores]
    return found


def _facts(source: PRMSource, solutions: Sequence[StepwiseSolution]) -> Settings:
    """Return a function that returns everything that the scores depend on."""

    def facts() -> dict[str, Any]:
        spec = source.resolve()
        reference = source.reference or spec.reference
        written = [[each.question, each.steps] for each in solutions]
        digest = hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
        settings = {f"digest of --model {number}": model_digest(member) for number, member in enumerate(prm_members(source.model))}
        settings |= {"digest of the reference": None if reference is None else model_digest(reference)}
        settings |= {"digest of the solutions": digest, **{f"spec: {name}": value for name, value in asdict(spec).items()}}
        settings |= {f"--{name}": getattr(source, name) for name in ("device", "dtype", "seed", "backend")}
        return json.loads(json.dumps(settings, default=str))

    return facts
