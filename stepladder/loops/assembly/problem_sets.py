"""The problems of a run: three splits that share no question, and what was left out to make it so."""

from collections.abc import Sequence
from dataclasses import dataclass

from stepladder.data.datasets.overlap import contamination, without_questions
from stepladder.data.datasets.presets import Role, find_preset, load_preset
from stepladder.data.datasets.problems import Loaded, check_disjoint, read_problems, split_problems
from stepladder.loops.assembly.problems import has_references
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.loops.runs.problem_facts import ProblemFacts, Similar, SplitFacts
from stepladder.plugs import is_source
from stepladder.types import LabelledProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemSets:
    """The problems of a run."""

    splits: dict[str, list[LabelledProblem]]
    """``train``, ``held_out`` and ``test``."""
    loaded: dict[str, Loaded]
    """What each source gave; ``held_out`` is missing if it was set aside from ``train``."""
    shared: dict[str, int]
    """Problems that were left out because a split further from training asks the same, by split."""

    def facts(self) -> ProblemFacts:
        """Return the figures for the report. This compares the texts of all questions."""
        train = self.splits["train"]
        return ProblemFacts(
            splits={name: self._split_facts(name, problems) for name, problems in self.splits.items()},
            similar={name: _similar(train, self.splits[name]) for name in ("held_out", "test")},
        )

    def _split_facts(self, name: str, problems: Sequence[LabelledProblem]) -> SplitFacts:
        loaded = self.loaded.get(name)
        return SplitFacts(
            num_rows=len(problems) if loaded is None else loaded.num_rows,
            num_problems=len(problems),
            dropped={} if loaded is None else loaded.dropped,
            num_shared=self.shared.get(name, 0),
        )


def _similar(training: Sequence[LabelledProblem], evaluation: Sequence[LabelledProblem]) -> Similar:
    found = contamination(training, evaluation)
    return Similar(num_problems=found.num_problems, num_similar=found.num_similar, examples=[list(pair) for pair in found.examples])


def read_sets(config: ProblemsConfig, *, seed: int) -> ProblemSets:
    """Read the three splits. A problem whose question a later split asks, too, leaves the earlier one: train, held_out, test.

    Raises:
        DataFormatError: If a source breaks its format, an id is in two splits with different questions, or no problem is left.
    """
    loaded = {
        "train": read_split(config, config.train, limit=None if config.held_out is None else config.train_limit, split="train"),
        "test": read_split(config, config.test, limit=config.test_limit, split="test"),
    }
    train, test, shared = loaded["train"].problems, loaded["test"].problems, {}
    if config.held_out is not None:
        loaded["held_out"] = read_split(config, config.held_out, limit=config.held_out_limit, split="held_out")
        held_out, shared["held_out"] = without_questions(loaded["held_out"].problems, test)
        train, shared["train"] = without_questions(train, [*held_out, *test])
    else:
        train, shared["train"] = without_questions(train, test)
        train, held_out = split_problems(train, held_out=config.held_out_size, seed=seed)
        train, held_out = train[: config.train_limit], held_out[: config.held_out_limit]
    check_disjoint(train=train, held_out=held_out, test=test)
    return ProblemSets(splits={"train": train, "held_out": held_out, "test": test}, loaded=loaded, shared=shared)


def read_split(config: ProblemsConfig, source: str, *, limit: int | None, split: str) -> Loaded:
    """Read one source with the configured fields, or as its preset says.

    Args:
        config: The section.
        source: File, data set, function or preset.
        limit: Read at most this many problems.
        split: ``train``, ``held_out`` or ``test``.

    Raises:
        DataFormatError: If the source breaks its format.
    """
    role: Role = "train" if split == "train" else "test"
    if (preset := find_preset(source)) is not None:
        return load_preset(preset, role, limit=limit)
    dataset_split = config.test_split if split == "test" else config.train_split
    return read_problems(
        source,
        id_field=config.id_field or None,
        question_field=config.question_field,
        answer_field=config.answer_field,
        answer_pattern=config.answer_pattern,
        level_field=config.level_field,
        rule=None if config.verifier else config.rule,
        # A verifier of your own may need no reference answer.
        allow_unlabelled=not has_references(config),
        drop_unreadable=config.unreadable == "drop",
        subset=config.subset,
        split=split if is_source(source) else dataset_split,
        limit=limit,
    )


def build_problems(config: ProblemsConfig, *, seed: int) -> dict[str, list[LabelledProblem]]:
    """Return the splits of ``read_sets``; errors are the same."""
    return read_sets(config, seed=seed).splits


def load_split(config: ProblemsConfig, source: str, *, limit: int | None, split: str) -> list[LabelledProblem]:
    """Return the problems of ``read_split``; errors are the same."""
    return read_split(config, source, limit=limit, split=split).problems
