"""From configuration to objects: the one place that introduces policy, PRM, search and data to each other.

Model classes are imported inside the functions that need them, so that reading a configuration stays free of torch.
"""

import os
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stepladder.data.problems import check_disjoint, load_problems, split_problems
from stepladder.data.verifier import AnswerVerifier
from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.config import (
    Config,
    EvaluateConfig,
    OpenAIConfig,
    PolicyConfig,
    PreferenceConfig,
    ProblemsConfig,
    SearchConfig,
    TrainConfig,
)
from stepladder.loops.workers import gpu_names
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.types import Budget, LabelledProblem, Problem


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
    """Return a policy on the configured backend; weights and engines are kept per process, caches of keys and values are new.

    Raises:
        ConfigError: If the backend is not installed or its settings are impossible.
        CheckpointError: If the model cannot be loaded.
        BackendError: If the server does not answer.
    """
    if config.policy.backend == "vllm":
        return _vllm_policy(config, policy_dir)
    if config.policy.backend == "openai":
        return _openai_policy(config, policy_dir)
    from stepladder.policy.backends.transformers import TransformersPolicy

    model, tokenizer = _policy_weights(policy_dir, config.policy.device, config.policy.dtype, config.policy.trust_remote_code)
    return TransformersPolicy(model, tokenizer, step_format(config), max_batch=config.policy.max_batch)


def build_scorer(config: Config, prm_dir: str | None, *, renderer: Any = None, problems: Iterable[Problem] = ()) -> Any:
    """Return a step scorer on the configured backend, or None without a PRM; raises as ``build_policy`` does.

    Args:
        config: The configuration.
        prm_dir: Directory of the PRM, or the hub id of a public one.
        renderer: The policy's renderer; a PRM that reads text needs it to know the steps.
        problems: What will be searched; a PRM that reads text needs the questions.
    """
    if prm_dir is None:
        return None
    if _reads_text(prm_dir):
        return _text_scorer(config, prm_dir, renderer, problems)
    if config.prm.backend == "vllm":
        return _vllm_scorer(config, prm_dir)
    from stepladder.prm.scorer import TransformersStepScorer

    model, spec = _prm_weights(prm_dir, config.policy.device, config.policy.dtype)
    return TransformersStepScorer(model, spec)


def check_backends(config: Config, *, trains: bool) -> None:
    """Check that the configured backends can do the work, before any is done; nothing is loaded.

    Args:
        config: The configuration.
        trains: Whether rounds change the policy's weights.

    Raises:
        ConfigError: If vLLM is not installed, or a server would have to take new weights, or GPUs are missing.
    """
    if "vllm" in (config.policy.backend, config.prm.backend):
        if find_spec("vllm") is None:
            raise ConfigError(
                "policy.backend: 'vllm' needs the package vllm: it is not installed -- pip install 'stepladder[vllm]' where there is a "
                "GPU, or see docs/backends.md for the CPU"
            )
        shares = (config.policy.vllm.memory_share, config.policy.vllm.prm_memory_share)
        if config.policy.backend == config.prm.backend and sum(shares) > 1:
            raise ConfigError(
                f"policy.vllm: memory_share and prm_memory_share of engines that share a GPU must sum to at most 1: got {shares[0]} and "
                f"{shares[1]} -- lower one"
            )
        wanted, found = config.policy.vllm.data_parallel * config.policy.vllm.tensor_parallel, len(gpu_names())
        if trains and wanted > max(found, 1):
            raise ConfigError(
                f"policy.vllm: data_parallel * tensor_parallel must be at most the number of GPUs: got {wanted} > {found} -- lower one"
            )
    if trains and config.policy.backend == "openai":
        raise ConfigError(
            "policy.backend: evolve trains the policy, and a server keeps the weights it was started with: got 'openai' -- use 'vllm' or "
            "'transformers'"
        )


def _vllm_policy(config: Config, policy_dir: str) -> Any:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.lm.vllm import VLLMEngine
    from stepladder.policy.backends.vllm import VLLMPolicy

    trust, settings = config.policy.trust_remote_code, _engine_settings(config, config.policy.vllm.memory_share)
    engine = _held_engine("policy", (policy_dir, settings), lambda: VLLMEngine(policy_dir, task="generate", settings=settings))
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    return VLLMPolicy(engine, tokenizer, step_format(config), *named)


def _vllm_scorer(config: Config, prm_dir: str) -> Any:
    from stepladder.prm.loading import load_head
    from stepladder.prm.specs import PRMSpec
    from stepladder.prm.vllm import VLLMOutputs, VLLMStepScorer

    spec = PRMSpec.load(prm_dir)
    return VLLMStepScorer(VLLMOutputs(_prm_engine(config, prm_dir), load_head(prm_dir, spec)), spec)


def _prm_engine(config: Config, prm_dir: str) -> Any:
    from stepladder.lm.vllm import VLLMEngine

    settings = _engine_settings(config, config.policy.vllm.prm_memory_share)
    return _held_engine("prm", (prm_dir, settings), lambda: VLLMEngine(prm_dir, task="embed", settings=settings))


def _engine_settings(config: Config, memory_share: float) -> Any:
    from stepladder.lm.vllm import EngineSettings

    section = config.policy.vllm
    return EngineSettings(
        dtype=config.policy.dtype,
        memory_share=memory_share,
        tensor_parallel=section.tensor_parallel,
        block_size=section.block_size,
        max_batch=config.policy.max_batch,
        max_context=section.max_context,
        trust_remote_code=config.policy.trust_remote_code,
        options=section.options,
    )


@cache
def _engines() -> dict[str, tuple[Any, Any]]:
    """Return the vLLM engines of this process by role, each with what it was started from."""
    return {}


def _held_engine(role: str, made_from: Any, start: Callable[[], Any]) -> Any:
    """Return the engine of a role with an empty cache; one of other weights or settings is ended first, to give its memory back."""
    held = _engines()
    if role in held and held[role][0] != made_from:
        held.pop(role)[1].close()
    if role not in held:
        held[role] = (made_from, start())
    engine = held[role][1]
    engine.reset()
    return engine


def _openai_policy(config: Config, policy_dir: str) -> Any:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.policy.backends.openai import OpenAIPolicy

    section, trust = config.policy.openai, config.policy.trust_remote_code
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    text = named[0].get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    return OpenAIPolicy(_server(section), tokenizer, step_format(config), *named, vocab_size=text.vocab_size, context=context)


@lru_cache(maxsize=1)
def _server(section: OpenAIConfig) -> Any:
    from stepladder.policy.backends.openai import CompletionServer, ServerSettings

    plain = section.model_dump(exclude={"api_key_env"})
    key = None if section.api_key_env is None else os.environ.get(section.api_key_env)
    if section.api_key_env is not None and not key:
        raise ConfigError(f"policy.openai.api_key_env: the variable must hold a key: {section.api_key_env!r} is not set -- export it")
    return CompletionServer(ServerSettings(**plain, api_key=key))


def _reads_text(prm_dir: str) -> bool:
    """Say whether a PRM reads text; one of which nothing is known is left to the error of whoever loads it."""
    from stepladder.prm.specs import resolve_spec

    try:
        return resolve_spec(prm_dir).prompt != "tokens"
    except ConfigError:
        return False


def _text_scorer(config: Config, prm_dir: str, renderer: Any, problems: Iterable[Problem]) -> Any:
    """Return a public PRM as a scorer of what the policy writes."""
    from stepladder.prm.text_scorer import TextStepScorer

    reader = _text_reader(config, prm_dir)
    end = renderer.step_format.step_end
    questions = {renderer.prompt_ids(problem): problem.question for problem in problems}
    lengths = sorted({len(prompt) for prompt in questions}, reverse=True)

    def split(prefix_ids: tuple[int, ...]) -> tuple[str, tuple[str, ...]] | None:
        # The longest prompt that fits: a shorter one could only fit a question that begins like another.
        length = next((length for length in lengths if prefix_ids[:length] in questions), None)
        if length is None:
            return None
        steps = renderer.step_format.split_steps(renderer.decode(prefix_ids[length:]))
        return questions[prefix_ids[:length]], tuple(step.removesuffix(end) for step in steps)

    return TextStepScorer(reader, split=split, decode=lambda step_ids: renderer.decode(step_ids).removesuffix(end))


def _text_reader(config: Config, prm_dir: str) -> Any:
    from stepladder.lm.loading import load_tokenizer
    from stepladder.prm.loading import load_head
    from stepladder.prm.reader import CachedModel, StepReader
    from stepladder.prm.specs import resolve_spec

    spec = resolve_spec(prm_dir)
    if spec.family in ("implicit", "judge"):
        raise ConfigError(
            f"{prm_dir}: a search must be guided by a PRM with a head or vocabulary tokens: got the family {spec.family!r} -- use another"
        )
    tokenizer = load_tokenizer(prm_dir, trust_remote_code=config.policy.trust_remote_code)
    if config.prm.backend == "vllm":
        from stepladder.prm.vllm import VLLMOutputs

        return StepReader([VLLMOutputs(_prm_engine(config, prm_dir), load_head(prm_dir, spec, tokenizer))], tokenizer, spec)
    model = _text_weights(prm_dir, spec, config.policy.device, config.policy.dtype, config.policy.trust_remote_code)
    return StepReader([CachedModel(model, num_outputs=spec.num_outputs)], tokenizer, spec)


@lru_cache(maxsize=1)
def _text_weights(prm_dir: str, spec: Any, device: str, dtype: str, trust_remote_code: bool) -> Any:
    from stepladder.lm.loading import load_tokenizer
    from stepladder.prm.loading import load_reward_model

    tokenizer = load_tokenizer(prm_dir, trust_remote_code=trust_remote_code)
    return load_reward_model(prm_dir, spec, tokenizer, device=device, dtype=dtype, trust_remote_code=trust_remote_code)


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
    """Forget cached weights and end engines; called before training, which needs the memory."""
    for _, engine in _engines().values():
        engine.close()
    _engines().clear()
    _policy_weights.cache_clear()
    _prm_weights.cache_clear()
    _text_weights.cache_clear()


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
    if uses_gpu(config.policy.device):
        return config.policy.vllm.data_parallel if config.policy.backend == "vllm" else 1
    return max(1, len(os.sched_getaffinity(0)) // config.run.threads)


def gpus_per_worker(config: Config) -> int | None:
    """Return how many GPUs each worker has for itself; None where all workers see all."""
    section = config.policy.vllm
    return section.tensor_parallel if config.policy.backend == "vllm" and section.data_parallel > 1 else None


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
