"""Search and train in turns: after every ``run.update_every`` problems the policy learns from their trees, and goes on with new weights.

One process holds the model. It searches with the weights that it trains, so nothing is saved and loaded between two chunks of problems. The
trees and rows of every chunk, and now and then weights and optimiser, lie in a folder of the round. A stopped stage goes on after the last
checkpoint, and ends with the bytes of one that was never stopped: a chunk depends on the weights before it and on names alone. At the end
the trees become the round's shards, as if the round had been searched as a whole.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.files import atomic_file, atomic_write_text, reading
from stepladder.loops.assembly.policies import LiveWeights, build_renderer, step_format
from stepladder.loops.assembly.search import build_method, search_budget
from stepladder.loops.assembly.training import build_gradient_objective, train_settings
from stepladder.loops.config.run import Config
from stepladder.loops.runs.results import PolicyTraining, TrainingSummary
from stepladder.loops.runs.workers import Progress, Task, report_progress, worker_models
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.kinds import ADVANTAGES, TREES, has_rows
from stepladder.loops.stages.search import first_tree, merge_passes, write_labelled_trees
from stepladder.loops.stages.trainings import finished_training
from stepladder.mcts.allocation import Uniform
from stepladder.types import AdvantageRow, LabelledProblem, derive_seed

FOLDER = "online"
"""Folder of a round that holds its chunks until the stage is finished."""
UPDATES_FILE = "updates.jsonl"
"""File of a round with one line for every chunk."""


class OnlineShard(NamedTuple):
    """A shard of training problems with the files of its rows."""

    problems: list[LabelledProblem]
    """Its problems."""
    trees: Path
    """Where its trees go."""
    rows: Path
    """Where its rows with advantages go."""


@dataclass(kw_only=True, slots=True)
class _Course:
    """What a stage has done so far; it is stored with every checkpoint."""

    chunks: int = 0
    """Chunks finished."""
    losses: list[float] = field(default_factory=list)
    """Loss of every update."""
    norms: list[float] = field(default_factory=list)
    """Gradient norm of every update."""
    rows: int = 0
    """Rows learned from."""
    tokens: int = 0
    """Tokens forwarded in updates."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    layout: str = "paths"
    """How the rows were laid out."""
    saved_updates: int = 0
    """Updates that the last checkpoint has."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each chunk."""

    def summary(self) -> TrainingSummary:
        """Return the summary of the training."""
        from stepladder.lm.training import UpdateLog, training_curve

        logs = [
            UpdateLog(step=step, updates=1, loss=loss, grad_norm=norm)
            for step, (loss, norm) in enumerate(zip(self.losses, self.norms, strict=True), 1)
        ]
        return TrainingSummary(
            updates=len(self.losses),
            rows=self.rows,
            tokens=self.tokens,
            first_loss=self.losses[0],
            last_loss=self.losses[-1],
            mean_loss=sum(self.losses) / len(self.losses),
            dropped_by_reason=self.dropped,
            layout=self.layout,
            curve=training_curve(logs),
        )


def train_online(context: RoundContext, number: int, models: Models) -> PolicyTraining:
    """Search the training problems and train the policy on the way; without any row it is left as it is."""
    run, stage = context.run, f"round {number}: search and update"
    out, folder = run.policy(number), run.round(number) / FOLDER
    trees, rows, summary = context.paths(number, TREES), context.paths(number, ADVANTAGES), out.with_suffix(".json")
    found = None
    if not (all(path.exists() for path in (*trees, *rows)) and (summary.exists() or not has_rows(rows))):
        summary.unlink(missing_ok=True)
        problems = context.shards("train")
        task = Task.of(
            search_and_train,
            config=context.config,
            models=models,
            base=run.policy_source(0, context.run_config),
            shards=[OnlineShard(*each) for each in zip(problems, trees, rows, strict=True)],
            folder=folder,
            out=out,
            seed=derive_seed(context.config.run.seed, "train", number),
            stage=stage,
        )
        with context.stage(number, "search and train policy") as event:
            found = context.work([task], {stage: sum(map(len, problems))})[0]
            event.failures = context.check_samples(trees, stage)
    trained = PolicyTraining(gradient=found)
    if found is not None or summary.exists():
        trained = finished_training(summary, [], train=lambda: trained, read=PolicyTraining.from_dict)
    shutil.rmtree(folder, ignore_errors=True)
    return trained


def search_and_train(
    *,
    config: Config,
    models: Models,
    base: str,
    shards: list[OnlineShard],
    folder: Path,
    out: Path,
    seed: int,
    stage: str,
) -> TrainingSummary | None:
    """Search chunk after chunk, and train the policy on each; return the summary, or None if no chunk gave a row.

    Args:
        config: The configuration.
        models: The models; the policy is the one to start from.
        base: The policy of round 0.
        shards: The training problems.
        folder: Where chunks and checkpoints lie until the stage is finished.
        out: Directory of the trained policy.
        seed: Seed of the training.
        stage: Name under which progress is shown.
    """
    worker_models().release()
    stage_of = _OnlineStage(config, models, base=base, folder=folder, seed=seed, stage=stage)
    stage_of.resume()
    assert config.run.update_every is not None, "this stage is for runs that have it"
    chunks = _chunks(shards, config.run.update_every)
    for index in range(stage_of.course.chunks, len(chunks)):
        stage_of.do(chunks[index], index, len(chunks))
    stage_of.finish(shards, chunks, out)
    return stage_of.course.summary() if stage_of.course.losses else None


class _Chunk(NamedTuple):
    """Problems that are searched with the same weights."""

    shard: int
    """Their shard."""
    problems: list[LabelledProblem]
    """The problems."""


def _chunks(shards: Sequence[OnlineShard], size: int) -> list[_Chunk]:
    return [
        _Chunk(number, shard.problems[begin : begin + size])
        for number, shard in enumerate(shards)
        for begin in range(0, len(shard.problems), size)
    ]


class _OnlineStage:
    """The model of a stage, and its course."""

    def __init__(self, config: Config, models: Models, *, base: str, folder: Path, seed: int, stage: str) -> None:
        """Load the policy in the form in which it is trained."""
        from stepladder.lm.live_training import LiveTraining
        from stepladder.lm.loading import load_tokenizer
        from stepladder.policy.fine_tuning import load_policy
        from stepladder.policy.gradient import collate_gradient, collate_packed_gradient

        self._config, self._models, self._folder, self._stage = config, models, folder, stage
        trust, settings = config.policy.trust_remote_code, train_settings(config.gradient, seed=seed, config=config)
        model = load_policy(models.policy, settings, trust)
        self._live = LiveWeights(models.policy, model, load_tokenizer(models.policy, trust_remote_code=trust))
        self._training = LiveTraining.start(
            model,
            objective=build_gradient_objective(config.gradient),
            settings=settings,
            collate=collate_gradient,
            collate_packed=collate_packed_gradient,
        )
        needs = config.gradient.loss.kl_weight > 0
        # The model before the stage changes in place, so the reference is one of its own.
        reference = {"start": models.policy, "base": base}[config.gradient.reference]
        self._reference = load_policy(reference, settings, trust) if needs else None
        self._renderer_hash = build_renderer(config, models.policy).hash
        self.course = _Course()

    def resume(self) -> None:
        """Go on after the last checkpoint, if there is one."""
        import torch

        if self._state.exists():
            remedy = f"remove {self._folder}, and run evolve again: the round's search begins anew"
            with reading(self._state, what="the state of a training during the search", remedy=remedy):
                state = torch.load(self._state, map_location="cpu", weights_only=True)
                self._training.load_state_dict(state)
                self.course = _Course(**state["course"])
        self._folder.mkdir(parents=True, exist_ok=True)

    def do(self, chunk: _Chunk, index: int, count: int) -> None:
        """Search a chunk and train on its trees."""
        self._search(chunk, index)
        selection = self._config.labels.advantages.select(TREES.read([self._path("trees", index)]))
        rows, course = selection.rows, self.course
        used, late = self._train(rows, index, count) if rows else ({}, 0)
        kept = [replace(row, staleness=used[place]) for place, row in enumerate(rows) if place in used]
        ADVANTAGES.write(self._path("rows", index), kept)
        # What is left are rows that a part of an epoch, or a number of updates, does not reach.
        unused = Counter({"too stale": late, "not reached": len(rows) - len(kept) - late})
        course.dropped = dict(Counter(course.dropped) + unused)
        course.rows += len(kept)
        course.chunks = index + 1
        course.log.append(
            {
                "chunk": index,
                "updates": len(course.losses),
                "loss": course.losses[-1] if used else None,
                "rows": len(kept),
                "staleness": dict(sorted(Counter(str(row.staleness) for row in kept).items())),
                "dropped": selection.dropped_by_reason,
            }
        )
        every = self._config.gradient.checkpoint_every
        if every and len(course.losses) - course.saved_updates >= every:
            self._checkpoint()

    def finish(self, shards: Sequence[OnlineShard], chunks: Sequence[_Chunk], out: Path) -> None:
        """Write the policy if it was trained, the rows, and last the trees, of every shard."""
        from stepladder.files import atomic_directory
        from stepladder.policy.fine_tuning import saver

        if self.course.losses:
            save = saver(self._models.policy, self._config.policy.trust_remote_code)
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_directory(out) as temporary:
                save(self._training.model, temporary)
            step_format(self._config).save(out)
        atomic_write_text(self._folder.parent / UPDATES_FILE, "".join(json.dumps(entry) + "\n" for entry in self.course.log))
        for number, shard in enumerate(shards):
            own = [index for index, chunk in enumerate(chunks) if chunk.shard == number]
            ADVANTAGES.write(shard.rows, ADVANTAGES.read([self._path("rows", index) for index in own]))
            order = [labelled.problem.id for labelled in shard.problems]
            merge_passes(order=order, passes=[self._path("trees", index) for index in own], out=shard.trees)

    def _search(self, chunk: _Chunk, index: int) -> None:
        """Search the trees of a chunk, one after the other if a problem has several, with caches of keys that are new."""
        config, allocation = self._config, self._config.search.allocation
        assert isinstance(allocation, Uniform), "checked before the run"
        passes = [self._folder / f"pass-{index:05d}-{number:02d}.parquet" for number in range(allocation.trees_per_problem)]
        for number, path in enumerate(passes):
            write_labelled_trees(
                config,
                self._models,
                chunk.problems,
                method=build_method(config, config.search),
                budget=search_budget(config.search),
                out=path,
                # Progress counts problems: only the last tree of each counts.
                stage=self._stage if number == len(passes) - 1 else f"{self._stage}, tree {number + 1}",
                tree_number=number + first_tree(config),
                live=self._live,
            )
        merge_passes(order=[labelled.problem.id for labelled in chunk.problems], passes=passes, out=self._path("trees", index))
        for path in passes:
            for part in path.parent.glob(f"{path.stem}.*"):
                part.unlink()

    def _train(self, rows: list[AdvantageRow], index: int, count: int) -> tuple[dict[int, int], int]:
        """Train on the rows of a chunk; return the staleness of every row that was used, by its place, and how many were too stale."""
        from stepladder.lm.training_rows import check_provenance, vocabulary_size
        from stepladder.policy.gradient import gradient_rows, with_models

        training, course, loss = self._training, self.course, self._config.gradient.loss
        check_provenance((row.provenance for row in rows), renderer_hash=self._renderer_hash, what="rows with advantages")
        # No row is longer than the context: this model has just sampled it. So entry i below belongs to row i.
        made = gradient_rows(rows, vocabulary=vocabulary_size(training.model))
        reference = None if self._reference is None else lambda: self._reference
        made = with_models(training.model, made, training.settings, loss=loss, reference=reference)  # pyright: ignore[reportArgumentType]
        found = training.train(made, at=(index + 0.5) / count, number=index, max_updates=self._config.gradient.max_staleness + 1)
        course.losses += found.losses
        course.norms += found.norms
        course.tokens += found.tokens
        course.layout = found.layout
        report_progress(Progress(stage=self._stage, tokens=found.tokens))
        return found.used, found.late

    def _checkpoint(self) -> None:
        import torch

        self.course.saved_updates = len(self.course.losses)
        with atomic_file(self._state) as temporary:
            torch.save({**self._training.state_dict(), "course": asdict(self.course)}, temporary)

    @property
    def _state(self) -> Path:
        return self._folder / "state.pt"

    def _path(self, kind: str, index: int) -> Path:
        return self._folder / f"{kind}-{index:05d}.parquet"
