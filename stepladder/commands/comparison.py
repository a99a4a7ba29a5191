"""A comparison of search methods: the methods, budgets and seeds, and how a user names them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepladder.commands.solve_settings import choose_models, read_option, show_warnings
from stepladder.errors import ConfigError
from stepladder.loops.assembly.checks import check_cluster
from stepladder.loops.assembly.preflight import measured_prompts
from stepladder.loops.assembly.problem_sets import build_problems, load_split
from stepladder.loops.assembly.problems import check_verifier
from stepladder.loops.config.run import Config
from stepladder.loops.runs.newest import newest_run
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import LabelledProblem

REFERENCE = "greedy"
"""The method that always runs: the policy without any search."""
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
        """Whether the method ignores budgets."""
        return self.method.samples_solutions and self.method.sampling.temperature == 0

    @property
    def is_scheduled(self) -> bool:
        """Whether it has to know its simulations beforehand."""
        return self.method.selection.type_name == "gumbel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The compared methods, and the directory of the comparison."""

    config: Config
    """Format, limits, grading and device."""
    policy: str
    """Directory or hub id of the policy."""
    prm: tuple[str, ...]
    """Directories of the PRMs; several are an ensemble; empty compares without one."""
    source: str
    """Source of the problems, for people."""
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
        """Return the directory of its files."""
        name = re.sub(r"[^\w.,=-]", "_", self.contender.label)
        budget = "any" if self.tokens is None else str(self.tokens)
        return out / "cells" / name / budget / ("pilot" if self.is_pilot else f"seed-{self.seed}")


def read_contenders(texts: Sequence[str]) -> list[Contender]:
    """Return the user's methods, each once, and the reference.

    Args:
        texts: Methods with changed settings, such as ``beam,wave=8``. ``all`` means every method, and an empty list means
            ``DEFAULT_METHODS``.

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
        ConfigError: If one is not a whole number above 0.
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
    run: str | Path | None,
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
    run = newest_run() if run is None and policy is None else run
    config, chosen_policy, chosen_prm = choose_models(run=run, policy=policy, prm=prm, overrides=overrides, number=number)
    check_cluster(config)
    check_verifier(config.problems, config.format)
    if problems is not None:
        loaded = load_split(config.problems, str(problems), limit=limit, split="test")
    elif policy is None:
        splits = build_problems(config.problems, seed=config.run.seed)
        if split not in splits:
            raise ConfigError(f"--split: must be one of {', '.join(splits)}: got {split!r}")
        loaded = splits[split][:limit]
    else:
        raise ConfigError("eval: a policy of its own has no problems: got no PROBLEMS -- name a file with questions and answers")
    source = str(problems or f"{run}: {split}")
    show_warnings(measured_prompts(config, chosen_policy, {source: [each.problem for each in loaded]}))
    return Comparison(
        config=config,
        policy=chosen_policy,
        prm=chosen_prm,
        source=source,
        problems=loaded,
        contenders=contenders,
        budgets=budgets,
        num_seeds=num_seeds,
        out=out,
    )
