"""From configuration to objects: the one place that introduces policy, PRM, search and data to each other.

Model classes are imported inside the functions that need them, so that reading a configuration stays free of torch.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepladder.data.problems import check_disjoint, load_problems, split_problems
from stepladder.data.verifier import AnswerVerifier
from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.config import Config, EvaluateConfig, PolicyConfig, PreferenceConfig, ProblemsConfig, SearchConfig, TrainConfig
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.types import Budget, LabelledProblem


def build_problems(config: ProblemsConfig, *, seed: int) -> dict[str, list[LabelledProblem]]:
    """Load the three splits, keyed ``train``, ``held_out`` and ``test``, and check that they are disjoint.

    Raises:
        DataFormatError: If a file breaks its format or a problem stands in two splits.
    """
    train = _load(config, config.train, limit=None if config.held_out is None else config.train_limit, split=config.train_split)
    test = _load(config, config.test, limit=config.test_limit, split=config.test_split)
    if config.held_out is not None:
        held_out = _load(config, config.held_out, limit=config.held_out_limit, split=config.train_split)
    else:
        train, held_out = split_problems(train, held_out=config.held_out_size, seed=seed)
        train, held_out = train[: config.train_limit], held_out[: config.held_out_limit]
    check_disjoint(train=train, held_out=held_out, test=test)
    return {"train": train, "held_out": held_out, "test": test}


def _load(config: ProblemsConfig, source: str, *, limit: int | None, split: str) -> list[LabelledProblem]:
    return load_problems(
        source,
        id_field=config.id_field or None,
        question_field=config.question_field,
        answer_field=config.answer_field,
        answer_pattern=config.answer_pattern,
        subset=config.subset,
        split=split,
        limit=limit,
    )


def build_verifier(config: ProblemsConfig, problems: list[LabelledProblem]) -> AnswerVerifier:
    """Return the grader that holds the answers; close it when done."""
    return AnswerVerifier(problems, config.rule, deadline_s=config.deadline_s)


def build_method(section: SearchConfig | EvaluateConfig) -> SearchMethod:
    """Return the search method of a section with its options applied.

    Raises:
        ConfigError: If the method or an option is unknown or impossible.
    """
    return resolve_method(section.method, **section.options)


def search_budget(section: SearchConfig) -> Budget:
    """Return the spending caps of the training search."""
    return Budget(
        num_simulations=section.simulations,
        max_tokens=section.max_tokens,
        max_depth=section.max_depth,
        max_step_tokens=section.max_step_tokens,
    )


def check_searches(config: Config) -> None:
    """Check both search methods before any work starts.

    Raises:
        ConfigError: If a method or option is unknown, or a wave is larger than the simulations it is part of.
    """
    for name, section in (("search", config.search), ("evaluate", config.evaluate)):
        method = build_method(section)
        if method.wave > section.simulations:
            raise ConfigError(
                f"{name}.options.wave: must be at most {name}.simulations: got {method.wave} > {section.simulations} -- lower the wave"
            )


def check_model(config: PolicyConfig) -> None:
    """Check that a policy that is named by a path is a model directory with a tokenizer; a hub id is left to the loader.

    Raises:
        ConfigError: If the path does not exist.
        CheckpointError: If a file of the model is missing.
    """
    path = Path(config.model)
    if not path.is_dir():
        if path.is_absolute() or config.model.startswith((".", "~")):
            raise ConfigError(f"policy.model: must be a model directory or a hub id: {config.model!r} does not exist -- correct the path")
        return
    for names in (("config.json",), ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        if not any((path / name).is_file() for name in names):
            raise CheckpointError(f"{path}: a model directory must hold {names[0]}: it is missing -- save model and tokenizer there")


def step_format(config: Config) -> Any:
    """Return the ``StepFormat`` that the configuration describes."""
    from stepladder.policy.prompts import StepFormat

    return StepFormat(**config.format.model_dump())


def build_renderer(config: Config, policy_dir: str) -> Any:
    """Return the renderer of a policy: its tokenizer with the configured format."""
    from stepladder.lm.loading import load_tokenizer
    from stepladder.policy.prompts import PromptRenderer

    return PromptRenderer(load_tokenizer(policy_dir, trust_remote_code=config.policy.trust_remote_code), step_format(config))


def build_policy(config: Config, policy_dir: str) -> Any:
    """Return a transformers policy; weights are cached per process, caches of keys and values are new."""
    from stepladder.policy.backends.transformers import TransformersPolicy

    model, tokenizer = _policy_weights(policy_dir, config.policy.device, config.policy.dtype, config.policy.trust_remote_code)
    return TransformersPolicy(model, tokenizer, step_format(config), max_batch=config.policy.max_batch)


def build_scorer(config: Config, prm_dir: str | None) -> Any:
    """Return a transformers step scorer, or None without a PRM."""
    if prm_dir is None:
        return None
    from stepladder.prm.scorer import TransformersStepScorer

    model, spec = _prm_weights(prm_dir, config.policy.device, config.policy.dtype)
    return TransformersStepScorer(model, spec)


@lru_cache(maxsize=1)
def _policy_weights(policy_dir: str, device: str, dtype: str, trust_remote_code: bool) -> Any:
    from stepladder.lm.loading import load_causal_lm, load_tokenizer, silence_bars

    silence_bars()
    model = load_causal_lm(policy_dir, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(policy_dir, trust_remote_code=trust_remote_code)


@lru_cache(maxsize=1)
def _prm_weights(prm_dir: str, device: str, dtype: str) -> Any:
    from stepladder.lm.loading import load_token_classifier
    from stepladder.prm.specs import PRMSpec

    return load_token_classifier(prm_dir, device=device, dtype=dtype), PRMSpec.load(prm_dir)


def release_weights() -> None:
    """Forget cached weights; called before training, which needs the memory."""
    _policy_weights.cache_clear()
    _prm_weights.cache_clear()


def train_settings(section: TrainConfig, *, seed: int, device: str) -> Any:
    """Return the plain training settings of a section."""
    from stepladder.lm.training import LoraSettings, TrainSettings

    plain = {name: getattr(section, name) for name in TrainConfig.model_fields if name != "lora"}
    lora = LoraSettings(**section.lora.model_dump()) if section.lora else None
    return TrainSettings(**plain, lora=lora, seed=seed, device=device)


def build_preference_objective(section: PreferenceConfig) -> Any:
    """Return the loss of preference training."""
    from stepladder.policy.objectives import PreferenceObjective

    names = ("beta", "label_smoothing", "target_margin", "cpl_bias", "sft_weight")
    return PreferenceObjective(loss_name=section.loss, **{name: getattr(section, name) for name in names})


def num_workers(config: Config) -> int:
    """Return how many worker processes to start: as told, else one per core on a CPU and one where a GPU is used."""
    if config.run.workers:
        return config.run.workers
    return 1 if uses_gpu(config.policy.device) else max(1, len(os.sched_getaffinity(0)) // config.run.threads)


def uses_gpu(device: str) -> bool:
    """Say whether a device setting means a GPU on this machine; decided without importing torch for plain CPU settings."""
    if device == "cpu":
        return False
    if device.startswith("cuda"):
        return True
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()
