"""What a whole run needs of its models and of this machine, found before its first second of work.

``evolve``, ``eval``, ``solve``, ``serve`` and ``doctor`` share these checks. What is certain to fail is an error. What is estimated, or
holds for some problems alone, is a warning.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepladder.data.datasets.problems import load_seed_solutions
from stepladder.digests import file_stats
from stepladder.errors import ConfigError
from stepladder.hub import local_directory
from stepladder.interfaces import Renderer
from stepladder.lm.families import max_positions_of
from stepladder.lm.settings import StageSettings
from stepladder.loops.assembly.devices import device_memory, num_workers, uses_gpu
from stepladder.loops.assembly.estimates import ModelShape, cache_memory, checkpoint_disk, training_memory, weight_bytes
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.search import build_method
from stepladder.loops.assembly.unknown_text import UnknownText, unknown_in_format, unknown_in_prompts, unknown_in_solutions
from stepladder.loops.config.run import Config
from stepladder.loops.runs.flops import count_parameters
from stepladder.loops.runs.machine import free_disk, gib
from stepladder.prm.sources import prm_members, reads_policy_body
from stepladder.types import Problem

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LONGEST_READ = 256
"""Questions of a split whose prompts are read: the longest ones by characters."""
_NO_LIMIT = 1 << 40


class Need(NamedTuple):
    """What a stage takes of a memory or a disk."""

    stage: str
    """Name of the stage."""
    needed: int
    """Bytes that it takes at least."""
    at_most: int
    """Bytes with every cache full, or with the longest solutions in every row of a forward pass."""
    there: int | None
    """Bytes of the device, the machine or the disk; None if unknown."""
    remedy: str
    """What to change if they do not suffice."""

    @property
    def kind(self) -> str:
        """``disk`` or ``memory``."""
        return "disk" if self.stage == "disk" else "memory"

    @property
    def sentence(self) -> str:
        """The need in words, without what follows from it."""
        most = f", at most {gib(self.at_most)}" if self.at_most > self.needed else ""
        there = "an unknown size" if self.there is None else gib(self.there)
        return f"{self.stage}: takes at least {gib(self.needed)}{most}, of {there}"

    @property
    def warning(self) -> str | None:
        """The sentence to show if there is too little; None if it suffices."""
        if self.there is None or self.needed <= self.there:
            return None
        return f"{self.stage}: needs at least {gib(self.needed)} (an estimate): there are {gib(self.there)} -- {self.remedy}"


class ModelFacts(NamedTuple):
    """What is known of a model without its weights."""

    config: "PretrainedConfig"
    """Its text configuration."""
    shape: ModelShape | None
    """Its sizes; None if its weights are not here yet."""


def model_facts(source: str, *, trust_remote_code: bool = False) -> ModelFacts:
    """Read the configuration of a model and the headers of its weights.

    Raises:
        CheckpointError: If there is no such model, or it is damaged.
    """
    path = Path(source)
    return _facts(source, trust_remote_code, file_stats(path) if path.is_dir() else ())


@lru_cache(maxsize=8)
def _facts(source: str, trust_remote_code: bool, stats: tuple[tuple[str, int, int], ...]) -> ModelFacts:
    from stepladder.lm.loading import load_model_settings

    config = load_model_settings(source, trust_remote_code=trust_remote_code)[0].get_text_config()
    directory = local_directory(source)
    parameters = None if directory is None else count_parameters(directory)
    try:
        shape = None if parameters is None else ModelShape.of(config, parameters)
    except AttributeError:
        # A configuration that does not name the sizes of a decoder has nothing to estimate from.
        shape = None
    return ModelFacts(config, shape)


def context_of(config: Config, policy: str) -> int:
    """Return the longest sequence of prompt and solution that the policy takes, in tokens; a large number without a limit."""
    limit = min(max_positions_of(model_facts(policy, trust_remote_code=config.policy.trust_remote_code).config), _NO_LIMIT)
    if config.policy.backend == "vllm" and config.policy.vllm.max_context is not None:
        return min(limit, config.policy.vllm.max_context)
    return limit


class PromptLengths(NamedTuple):
    """The prompts of some problems against the context of a policy."""

    split: str
    """The problems."""
    policy: str
    """The policy, for messages."""
    context: int
    """Tokens of prompt and solution that it takes."""
    solution: int
    """Tokens of the longest solution that a search may sample."""
    longest: int
    """Tokens of the longest prompt."""
    longest_id: str
    """Its problem."""
    too_long: int
    """Problems, among those that were read, whose prompt leaves no room for a token."""
    none_fits: bool
    """Whether every prompt is too long."""

    @property
    def kind(self) -> str:
        """``context``."""
        return "context"

    @property
    def sentence(self) -> str:
        """The longest prompt in words."""
        context = "" if self.context == _NO_LIMIT else f", of {self.context} that the policy takes"
        return f"{self.split}: the longest prompt has {self.longest} tokens, a solution at most {self.solution}{context}"

    @property
    def warning(self) -> str | None:
        """The sentence to show if some prompts or solutions do not fit; None if all do."""
        found = f"{self.split}: the prompt of problem {self.longest_id!r} has {self.longest} tokens"
        if self.too_long:
            return (
                f"{found}, and {self.policy} takes {self.context}: problems whose prompts do not fit, {self.too_long} or more, get no "
                "solution -- leave them out, or take a model with a longer context"
            )
        if self.longest + self.solution > self.context:
            return (
                f"{found}, and with {self.solution} of a solution (search.max_depth * search.max_step_tokens) more than the {self.context} "
                f"that {self.policy} takes: its solutions end after {self.context - self.longest} -- lower one of the two"
            )
        return None

    def check(self) -> None:
        """Refuse prompts of which none fits.

        Raises:
            ConfigError: If so.
        """
        if self.none_fits:
            raise ConfigError(
                f"{self.split}: a prompt must leave room for a solution in the {self.context} tokens that {self.policy} takes: no prompt "
                f"does, the longest has {self.longest} -- shorten the questions, or take a model with a longer context"
            )


def prompt_lengths(
    renderer: Renderer, split: str, problems: Sequence[Problem], *, policy: str, context: int, solution: int
) -> PromptLengths:
    """Measure the prompts of a split: those of the 256 longest questions, and of all if none of these fits.

    Args:
        renderer: Makes prompts.
        split: Name of the problems.
        problems: At least one.
        policy: Name of the policy, for messages.
        context: Tokens that it takes.
        solution: Tokens of the longest solution.

    Raises:
        DataFormatError: If a prompt cannot be written.
    """
    read = _longest(problems)
    lengths = {problem.id: len(renderer.prompt_ids(problem)) for problem in read}
    longest = max(lengths, key=lengths.__getitem__)
    too_long = sum(length >= context for length in lengths.values())
    none_fits = too_long == len(lengths) and all(len(renderer.prompt_ids(problem)) >= context for problem in problems)
    return PromptLengths(split, policy, context, solution, lengths[longest], longest, too_long, none_fits)


def _longest(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems whose prompts are read."""
    return heapq.nlargest(_LONGEST_READ, problems, key=lambda problem: len(problem.question))


def solution_tokens(config: Config) -> int:
    """Return the tokens of the longest solution that a search may sample."""
    return config.search.max_depth * config.search.max_step_tokens


def measured_prompts(
    config: Config, policy: str, splits: Mapping[str, Sequence[Problem]], *, solution: int = 0
) -> list[PromptLengths | UnknownText]:
    """Measure the prompts of every split that has problems, and look for text in them, and in the format, that the tokenizer does not know.

    Args:
        config: The configuration.
        policy: The policy.
        splits: Problems by name.
        solution: Tokens of the longest solution; 0 looks at the prompts alone.

    Raises:
        ConfigError: If no prompt of a split fits the policy's context.
        DataFormatError: If a prompt cannot be written.
    """
    sizes = {"policy": policy, "context": context_of(config, policy), "solution": solution}
    renderer = build_renderer(config, policy)
    there = {name: problems for name, problems in splits.items() if problems}
    measured = [prompt_lengths(renderer, name, problems, **sizes) for name, problems in there.items()]
    for each in measured:
        each.check()
    unknown = unknown_in_format(renderer, config.format, policy=policy)
    around = renderer.unknown_in_prompt("")
    for name, problems in there.items():
        unknown += unknown_in_prompts(renderer, name, _longest(problems), policy=policy, apart=around)
    return [*measured, *unknown]


def unknown_in_warmup(config: Config, policy: str) -> list[UnknownText]:
    """Look for text in the solved examples that the tokenizer of a policy does not know; nothing without examples.

    Raises:
        ConfigError: If the tokenizer cannot write any of the solutions.
        DataFormatError: If the examples cannot be read.
    """
    if config.warmup.solutions is None:
        return []
    renderer, source = build_renderer(config, policy), Path(config.warmup.solutions)
    solutions = load_seed_solutions(source)
    return unknown_in_solutions(renderer, source, solutions, policy=policy)


def warnings_of(checked: Iterable[PromptLengths | UnknownText | Need]) -> list[str]:
    """Return the warnings among checks, in their order."""
    return [each.warning for each in checked if each.warning is not None]


def search_need(config: Config, policy: str, prms: Sequence[str | None], *, workers: int, num_problems: int) -> Need | None:
    """Return the memory of a search; None if a server samples, or the policy's weights are not here yet.

    Args:
        config: The configuration.
        policy: The policy.
        prms: The PRMs; None is one with the shape of the policy.
        workers: Processes that each hold the models.
        num_problems: Problems searched at once, at most.
    """
    facts = model_facts(policy, trust_remote_code=config.policy.trust_remote_code)
    if config.policy.backend != "transformers" or facts.shape is None:
        return None
    section, on_gpu = config.policy, uses_gpu(config.policy.device)
    own = [prm for prm in prms if config.prm.backend == "transformers" and not _shares_body(prm)]
    shapes = [facts.shape, *(_prm_shape(config, prm, facts.shape) for prm in own)]
    weights = sum(shape.parameters * weight_bytes(shape, section.dtype, on_gpu=on_gpu) for shape in shapes)
    method = build_method(config, config.search)
    samples = max(method.root_samples, method.selection.wave * getattr(method.growth, "num_children", 1))
    rows = min(section.max_batch, min(config.search.max_trees, num_problems) * samples)
    tokens = min(context_of(config, policy), solution_tokens(config))
    caches = sum(
        cache_memory(shape, rows=rows, tokens=tokens, value_bytes=weight_bytes(shape, section.dtype, on_gpu=on_gpu)) for shape in shapes
    )
    remedy = "lower run.workers, set policy.dtype = 'bfloat16', or take smaller models"
    return Need("search", workers * weights, workers * (weights + caches), device_memory(section.device), remedy)


def _shares_body(prm: str | None) -> bool:
    """Say whether a PRM is a head on the policy's body, which has no weights to speak of."""
    return prm is not None and all(map(reads_policy_body, prm_members(prm)))


def _prm_shape(config: Config, prm: str | None, policy: ModelShape) -> ModelShape:
    """Return the shape of a PRM, or of the policy from which it is made or whose size is the best guess."""
    if prm is None or local_directory(prm) is None or not (Path(prm) / "config.json").is_file():
        return policy
    return model_facts(prm, trust_remote_code=config.policy.trust_remote_code).shape or policy


class _Training(NamedTuple):
    """A training of a run."""

    name: str
    """Its section of the configuration."""
    stage: StageSettings
    """Its settings."""
    model: ModelShape
    """What it trains."""


def _trainings(config: Config, policy: ModelShape) -> list[_Training]:
    """Return the trainings that the run has, for a policy of a shape."""
    prm = _prm_shape(config, config.prm.model, policy)
    asked = [
        (config.warmup.solutions is not None, _Training("warmup.train", config.warmup.train, policy)),
        (config.sft.enabled, _Training("sft", config.sft, policy)),
        (config.preference.enabled, _Training("preference", config.preference, policy)),
        (config.gradient.enabled, _Training("gradient", config.gradient, policy)),
        # A head on the policy's body takes less than any training of the policy, and next to no disk.
        (
            config.prm.trains and config.prm.body == "own",
            _Training("prm.train", config.prm.train, prm),
        ),
    ]
    return [training for runs, training in asked if runs]


def training_needs(config: Config, policy: str) -> list[Need]:
    """Return the memory of every training of a run; none if the weights are not here yet."""
    shape = model_facts(policy, trust_remote_code=config.policy.trust_remote_code).shape
    # A model that accelerate spreads over GPUs needs what its plan says.
    if shape is None or config.training.accelerate_config is not None:
        return []
    there, on_gpu = device_memory(config.policy.device), uses_gpu(config.policy.device)
    needs = []
    for name, stage, model in _trainings(config, shape):
        solution = min(solution_tokens(config), context_of(config, policy))
        # A row of a preference is two solutions, of which packed rows forward the tokens that they share once.
        most = stage.rows_per_pass(config.training.num_processes) * solution * (2 if name == "preference" else 1)
        least = min(stage.row_tokens, most) if stage.packed else solution
        needed, at_most = (
            training_memory(model, stage, pass_tokens=tokens, has_head=name == "prm.train", on_gpu=on_gpu) for tokens in (least, most)
        )
        remedy = f"set {name}.lora, or spread the model over GPUs (training.accelerate_config), or take a smaller one"
        needs.append(Need(name, needed, at_most, there, remedy))
    return needs


def disk_need(config: Config, policy: str, place: Path, *, finished: int = 0) -> Need | None:
    """Return the disk of the models of the rounds that are missing, and of the checkpoints of one training; None if the size is unknown.

    A run keeps the policy and the PRMs of every round, in the type of the checkpoint that it starts from.

    Args:
        config: The configuration.
        policy: The policy that the run starts from.
        place: The run directory.
        finished: Rounds that are there, the warm-up included.
    """
    shape = model_facts(policy, trust_remote_code=config.policy.trust_remote_code).shape
    if shape is None:
        return None
    rounds = max(0, config.run.rounds + 1 - finished)
    trainings = _trainings(config, shape)
    prms = [training.model for training in trainings if training.name == "prm.train"] * config.prm.ensemble
    kept = sum(model.parameters * model.stored_bytes for model in (shape, *prms))
    working = max((checkpoint_disk(training.model, training.stage) for training in trainings), default=0) if rounds else 0
    return Need("disk", rounds * kept + working, rounds * kept + working, free_disk(place), "free space, or choose another --run-dir")


def run_needs(config: Config, policy: str, place: Path, *, num_problems: int, finished: int = 0) -> list[Need]:
    """Return what the stages of ``evolve`` take.

    Args:
        config: The configuration.
        policy: The policy that the run starts from.
        place: The run directory.
        num_problems: Problems of the largest split.
        finished: Rounds that are there, the warm-up included.
    """
    prms = [config.prm.model] * config.prm.ensemble if config.prm.enabled and config.prm.body == "own" else []
    at_once = min(num_problems, config.run.shard_size)
    # A process of a GPU has the GPU for itself or shares it by vLLM's settings.
    workers = 1 if uses_gpu(config.policy.device) else num_workers(config)
    needs = [search_need(config, policy, prms, workers=workers, num_problems=at_once)]
    needs += [*training_needs(config, policy), disk_need(config, policy, place, finished=finished)]
    return [need for need in needs if need is not None]
