"""From configuration to objects: the one place that introduces policy, PRM, search and data to each other.

Model classes are imported inside the functions that need them, so that reading a configuration stays free of torch.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stepladder.commands.prm_score import prm_members
from stepladder.data.datasets.problems import check_disjoint, load_problems, split_problems
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.data.step_checks.sandbox import CodeSandbox, check_sandbox
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.trackers import check_trackers
from stepladder.loops.config.config import (
    Config,
    EvaluateConfig,
    OpenAIConfig,
    PolicyConfig,
    PreferenceConfig,
    PRMConfig,
    ProblemsConfig,
    ScoresConfig,
    SearchConfig,
    TrainConfig,
)
from stepladder.loops.runs.workers import gpu_names
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.types import Budget, LabelledProblem, Problem


def build_problems(config: ProblemsConfig, *, seed: int) -> dict[str, list[LabelledProblem]]:
    """Load the three splits, keyed ``train``, ``held_out`` and ``test``, and check that they are disjoint.

    Raises:
        DataFormatError: If a file breaks its format or a problem stands in two splits.
    """
    train = load_split(config, config.train, limit=None if config.held_out is None else config.train_limit, split=config.train_split)
    test = load_split(config, config.test, limit=config.test_limit, split=config.test_split)
    if config.held_out is not None:
        held_out = load_split(config, config.held_out, limit=config.held_out_limit, split=config.train_split)
    else:
        train, held_out = split_problems(train, held_out=config.held_out_size, seed=seed)
        train, held_out = train[: config.train_limit], held_out[: config.held_out_limit]
    check_disjoint(train=train, held_out=held_out, test=test)
    return {"train": train, "held_out": held_out, "test": test}


def load_split(config: ProblemsConfig, source: str, *, limit: int | None, split: str) -> list[LabelledProblem]:
    """Load the labelled problems of one source with the configured fields.

    Raises:
        DataFormatError: If the source breaks its format.
    """
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


def check_labels(config: Config) -> None:
    """Check what the label settings must share with the format of steps.

    Raises:
        ConfigError: If a revision would not end a step.
    """
    text, end = config.labels.revision_text, config.format.step_end
    if text and not text.endswith(end):
        raise ConfigError(f"labels.revision_text: must end with format.step_end {end!r}, because a step follows: got {text!r} -- add it")


def check_model(config: PolicyConfig) -> None:
    """Check that a policy that is named by a path is a model directory with a tokenizer; a hub id is left to the loader.

    Raises:
        ConfigError: If the path does not exist.
        CheckpointError: If a file of the model is missing.
    """
    if not _is_directory("policy.model", config.model):
        return
    path = Path(config.model)
    for names in (("config.json",), ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        if not any((path / name).is_file() for name in names):
            raise CheckpointError(f"{path}: a model directory must hold {names[0]}: it is missing -- save model and tokenizer there")


def check_prm(config: PRMConfig) -> None:
    """Check that the given PRM and its reference exist where they are named by paths: they are loaded after the first training only.

    Raises:
        ConfigError: If a path does not exist.
    """
    for name, source in (("prm.model", config.model), ("prm.reference", config.reference)):
        if source is not None:
            _is_directory(name, source)


def _is_directory(setting: str, source: str) -> bool:
    """Say whether a model is a directory, and not a hub id; a path that does not exist is refused."""
    path = Path(source)
    if not path.is_dir() and (path.is_absolute() or source.startswith((".", "~"))):
        raise ConfigError(f"{setting}: must be a model directory or a hub id: {source!r} does not exist -- correct the path")
    return path.is_dir()


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


def build_scorer(
    config: Config,
    prm: str | Sequence[str] | None,
    *,
    renderer: Any,
    problems: Iterable[Problem] = (),
    scores: ScoresConfig | None = None,
) -> Any:
    """Return a step scorer on the configured backend, or None without a PRM; raises as ``build_policy`` does.

    Args:
        config: The configuration.
        prm: Directory of a PRM or of an ensemble, or the hub id of a public PRM; several make an ensemble, none is no scorer.
        renderer: The policy's renderer.
        problems: What will be searched; a PRM that reads text, or is implicit, needs the questions.
        scores: What becomes of the scores; None is what ``evaluate`` says.
    """
    if not prm:
        return None
    scores = config.evaluate.scores if scores is None else scores
    members = [member for directory in ([prm] if isinstance(prm, str) else prm) for member in prm_members(directory)]
    _keep_prms(members)
    prompts = _Prompts(renderer, problems)
    scorers = [_member_scorer(config, member, prompts, scores, number, len(members)) for number, member in enumerate(members)]
    return composed_scorer(scorers, scores, decode=renderer.decode, prompt_length=prompts.length)


def composed_scorer(
    scorers: Sequence[Any],
    scores: ScoresConfig,
    *,
    decode: Callable[[Sequence[int]], str],
    prompt_length: Callable[[tuple[int, ...]], int | None],
) -> Any:
    """Return one scorer of several: their ensemble, then bounds, then checks.

    Args:
        scorers: One or more.
        scores: What becomes of their scores.
        decode: Text of some tokens.
        prompt_length: As for ``code_check``.

    Raises:
        ConfigError: If steps are checked by their code, and this machine cannot shut it in.
    """
    from stepladder.loops.assembly.step_checks import arithmetic_check, code_check
    from stepladder.prm.compose import BoundedScorer, CheckedScorer, EnsembleScorer

    scorer = scorers[0] if len(scorers) == 1 else EnsembleScorer(scorers, rule=scores.ensemble, penalty=scores.penalty)
    if scores.bound != "none":
        scorer = BoundedScorer(scorer, rule=scores.bound, at=scores.bound_at)
    if scores.check == "arithmetic":
        scorer = CheckedScorer(scorer, arithmetic_check(decode), cap=scores.check_cap)
    elif scores.check == "code":
        check = code_check(decode, prompt_length=prompt_length, sandbox=_sandbox(scores.allow_unsandboxed))
        scorer = CheckedScorer(scorer, check, cap=scores.check_cap)
    return scorer


@cache
def _sandbox(allow_unsandboxed: bool) -> CodeSandbox:
    """Return what runs code in this process; what it has run is remembered from one search to the next."""
    return CodeSandbox(allow_unsandboxed=allow_unsandboxed)


def _member_scorer(config: Config, prm_dir: str, prompts: "_Prompts", scores: ScoresConfig, number: int, count: int) -> Any:
    spec = _prm_spec(config, prm_dir)
    if spec is not None and spec.prompt == "tokens" and spec.renderer_hash != prompts.renderer.hash:
        raise DataFormatError(
            f"{prm_dir}: the PRM must have been trained on the prompts and steps of this policy: got renderer {prompts.renderer.hash!r}, "
            f"expected {spec.renderer_hash!r} -- use the PRM of the same run, or one that reads text"
        )
    if spec is not None and (spec.prompt != "tokens" or spec.family == "implicit"):
        return _reading_scorer(config, prm_dir, spec, prompts, scores, number, count)
    if config.prm.backend == "vllm":
        return _vllm_scorer(config, prm_dir, scores, number, count)
    from stepladder.lm.loading import load_token_classifier
    from stepladder.prm.scorer import TransformersStepScorer
    from stepladder.prm.specs import PRMSpec

    options: dict[str, Any] = {"device": config.policy.device, "dtype": config.policy.dtype}
    model = _held_prm((prm_dir, spec), lambda: load_token_classifier(prm_dir, **options))
    return TransformersStepScorer(model, PRMSpec.load(prm_dir), entropy_penalty=scores.entropy_penalty)


def check_backends(config: Config, *, trains: bool) -> None:
    """Check that the configured backends can do the work, before any is done; nothing is loaded.

    Args:
        config: The configuration.
        trains: Whether rounds change the policy's weights.

    Raises:
        ConfigError: If vLLM is not installed, or a server would have to take new weights, or GPUs are missing, or code that steps are
            checked by cannot be shut in.
    """
    searches = [config.evaluate.scores, *([config.search.scores] if trains else [])]
    if any(scores.check == "code" and not scores.allow_unsandboxed for scores in searches):
        check_sandbox()
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


def check_training(config: Config) -> None:
    """Check that the trainings can run as configured, before any work is done; nothing is loaded.

    Raises:
        ConfigError: If a package, a file or GPUs are missing.
    """
    section = config.training
    check_trackers(section.report_to)
    if section.accelerate_config is not None and not Path(section.accelerate_config).is_file():
        raise ConfigError(f"training.accelerate_config: must be a file: {section.accelerate_config!r} does not exist -- correct the path")
    if section.num_processes > 1 and uses_gpu(config.policy.device) and section.num_processes > len(gpu_names()):
        raise ConfigError(
            f"training.num_processes: must be at most the number of GPUs: got {section.num_processes} > {len(gpu_names())} -- lower it"
        )
    stages = {"warmup.train": config.warmup.train, "sft": config.sft, "preference": config.preference, "prm.train": config.prm.train}
    quantised = [name for name, stage in stages.items() if stage.lora is not None and stage.lora.four_bit]
    if quantised and find_spec("bitsandbytes") is None:
        raise ConfigError(f"{quantised[0]}.lora.four_bit: needs the package bitsandbytes: it is not installed -- pip install bitsandbytes")


def _vllm_policy(config: Config, policy_dir: str) -> Any:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.lm.vllm_engine import VLLMEngine
    from stepladder.policy.backends.vllm import VLLMPolicy

    trust, settings = config.policy.trust_remote_code, _engine_settings(config, config.policy.vllm.memory_share)
    engine = _held_engine("policy", (policy_dir, settings), lambda: VLLMEngine(policy_dir, task="generate", settings=settings))
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    return VLLMPolicy(engine, tokenizer, step_format(config), *named)


def _vllm_scorer(config: Config, prm_dir: str, scores: ScoresConfig, number: int, count: int) -> Any:
    from stepladder.prm.checkpoints import load_head
    from stepladder.prm.specs import PRMSpec
    from stepladder.prm.vllm_scorers import VLLMOutputs, VLLMStepScorer

    spec = PRMSpec.load(prm_dir)
    engine = _prm_engine(config, prm_dir, f"prm {number}", count)
    return VLLMStepScorer(VLLMOutputs(engine, load_head(prm_dir, spec)), spec, entropy_penalty=scores.entropy_penalty)


def _vllm_reader(config: Config, prm_dir: str, spec: Any, scores: ScoresConfig, number: int, count: int) -> Any:
    """Return the reader of a PRM that reads text, or is implicit, on vLLM."""
    from stepladder.lm.loading import load_tokenizer
    from stepladder.prm.checkpoints import load_head
    from stepladder.prm.reader import StepReader
    from stepladder.prm.specs import resolve_reference
    from stepladder.prm.vllm_scorers import VLLMLogps, VLLMOutputs

    tokenizer = load_tokenizer(prm_dir, trust_remote_code=config.policy.trust_remote_code)
    other = resolve_reference(prm_dir, spec, config.prm.reference)
    models: list[Any]
    if other is None:
        models = [VLLMOutputs(_prm_engine(config, prm_dir, f"prm {number}", count), load_head(prm_dir, spec, tokenizer))]
    else:
        roles = {f"prm {number}": prm_dir, f"prm {number} reference": str(other)}
        models = [VLLMLogps(_prm_engine(config, model, role, 2 * count, task="generate")) for role, model in roles.items()]
    return StepReader(models, tokenizer, spec, entropy_penalty=scores.entropy_penalty)


def _prm_engine(config: Config, source: str, role: str, count: int, *, task: Any = "embed") -> Any:
    from stepladder.lm.vllm_engine import VLLMEngine

    # The engines of an ensemble, and those of an implicit model and its reference, share what one would have.
    settings = _engine_settings(config, config.policy.vllm.prm_memory_share / count)
    return _held_engine(role, (source, settings), lambda: VLLMEngine(source, task=task, settings=settings))


def _engine_settings(config: Config, memory_share: float) -> Any:
    from stepladder.lm.vllm_engine import EngineSettings

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
    server = _server(**_server_options(section))
    return OpenAIPolicy(server, tokenizer, step_format(config), *named, vocab_size=text.vocab_size, context=context)


@lru_cache(maxsize=1)
def _server(**options: Any) -> Any:
    from stepladder.policy.backends.completion_server import CompletionServer, ServerSettings

    return CompletionServer(ServerSettings(**options))


def _server_options(section: OpenAIConfig) -> dict[str, Any]:
    plain = section.model_dump(exclude={"api_key_env"})
    key = None if section.api_key_env is None else os.environ.get(section.api_key_env)
    if section.api_key_env is not None and not key:
        raise ConfigError(f"policy.openai.api_key_env: the variable must hold a key: {section.api_key_env!r} is not set -- export it")
    return {**plain, "api_key": key}


class _Prompts:
    """Finds the question and the earlier steps in what a search asks to have scored."""

    def __init__(self, renderer: Any, problems: Iterable[Problem]) -> None:
        self.renderer = renderer
        self._questions = {renderer.prompt_ids(problem): problem.question for problem in problems}
        self._lengths = sorted({len(prompt) for prompt in self._questions}, reverse=True)

    def length(self, prefix_ids: tuple[int, ...]) -> int | None:
        """Return how many tokens are the prompt; None where it is that of no known problem."""
        # The longest prompt that fits: a shorter one could only fit a question that begins like another.
        return next((length for length in self._lengths if prefix_ids[:length] in self._questions), None)

    def split(self, prefix_ids: tuple[int, ...]) -> tuple[str, tuple[str, ...]] | None:
        """Return question and steps as text."""
        length, end = self.length(prefix_ids), self.renderer.step_format.step_end
        if length is None:
            return None
        steps = self.renderer.step_format.split_steps(self.renderer.decode(prefix_ids[length:]))
        return self._questions[prefix_ids[:length]], tuple(step.removesuffix(end) for step in steps)

    def decode(self, step_ids: Sequence[int]) -> str:
        """Return the text of a step as ``split`` gives it."""
        return self.renderer.decode(step_ids).removesuffix(self.renderer.step_format.step_end)


def _prm_spec(config: Config, prm_dir: str) -> Any:
    """Return how a PRM is read; None where nothing says it, which is left to the error of whoever loads it."""
    from stepladder.prm.specs import SPEC_FILE, resolve_spec

    own = (Path(prm_dir) / SPEC_FILE).is_file()
    try:
        return resolve_spec(prm_dir, None if own else config.prm.spec)
    except ConfigError:
        if config.prm.spec is not None:
            raise
        return None


def _reading_scorer(config: Config, prm_dir: str, spec: Any, prompts: _Prompts, scores: ScoresConfig, number: int, count: int) -> Any:
    """Return a PRM that reads text, or is implicit, as a scorer of what the policy writes; a judge runs on the embedded engine."""
    from stepladder.prm.implicit_scorer import ImplicitStepScorer
    from stepladder.prm.outputs import check_entropy_penalty
    from stepladder.prm.reader import StepReader, load_parts
    from stepladder.prm.text_scorer import TextStepScorer

    options = {"device": config.policy.device, "dtype": config.policy.dtype, "trust_remote_code": config.policy.trust_remote_code}
    if spec.family == "judge":
        from stepladder.commands.prm_score import build_judge, load_judge

        check_entropy_penalty(scores.entropy_penalty, spec)
        model, tokenizer = _held_prm((prm_dir, spec), lambda: load_judge(prm_dir, options))
        return TextStepScorer(build_judge(model, tokenizer, spec, seed=config.run.seed), split=prompts.split, decode=prompts.decode)
    if config.prm.backend == "vllm":
        reader = _vllm_reader(config, prm_dir, spec, scores, number, count)
    else:
        parts = _held_prm((prm_dir, spec), lambda: load_parts(prm_dir, spec, reference=config.prm.reference, **options))
        reader = StepReader.on_transformers(parts, spec, entropy_penalty=scores.entropy_penalty)
    if spec.prompt == "tokens":
        return ImplicitStepScorer(reader, prompt_length=prompts.length)
    return TextStepScorer(reader, split=prompts.split, decode=prompts.decode)


@cache
def _prms() -> dict[tuple[str, Any], Any]:
    """Return the weights of the PRMs that this process scores with, by directory and spec."""
    return {}


def _keep_prms(members: Sequence[str]) -> None:
    """Forget the PRMs that are not among those wanted now: a round's models would otherwise pile up."""
    for key in [key for key in _prms() if key[0] not in members]:
        del _prms()[key]
    for role in [role for role in _engines() if role.startswith("prm") and int(role.split()[1]) >= len(members)]:
        _engines().pop(role)[1].close()


def _held_prm(key: tuple[str, Any], load: Callable[[], Any]) -> Any:
    if key not in _prms():
        _prms()[key] = load()
    return _prms()[key]


@lru_cache(maxsize=1)
def _policy_weights(policy_dir: str, device: str, dtype: str, trust_remote_code: bool) -> Any:
    from stepladder.lm.loading import load_causal_lm, load_tokenizer, silence_bars

    silence_bars()
    model = load_causal_lm(policy_dir, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(policy_dir, trust_remote_code=trust_remote_code)


def release_weights() -> None:
    """Forget cached weights and end engines; called before training, which needs the memory."""
    for _, engine in _engines().values():
        engine.close()
    _engines().clear()
    _policy_weights.cache_clear()
    _prms().clear()


def train_settings(section: TrainConfig, *, seed: int, config: Config) -> Any:
    """Return the plain training settings of a section."""
    from stepladder.lm.training import LoraSettings, TrainSettings

    plain = {name: getattr(section, name) for name in TrainConfig.model_fields if name != "lora"}
    lora = LoraSettings(**section.lora.model_dump()) if section.lora else None
    return TrainSettings(**plain, lora=lora, seed=seed, device=config.policy.device, report_to=config.training.report_to)


def build_preference_objective(section: PreferenceConfig) -> Any:
    """Return the loss of preference training: a ``PreferenceObjective``, or an ``UnpairedObjective`` where the loss takes no pairs."""
    from stepladder.policy.objectives import PreferenceObjective, UnpairedObjective

    paired = ("label_smoothing", "target_margin", "cpl_bias", "sft_weight", "reference_share")
    kind, names = (UnpairedObjective, ("good_weight", "bad_weight")) if section.unpaired else (PreferenceObjective, paired)
    return kind(loss_name=section.loss, beta=section.beta, **{name: getattr(section, name) for name in names})  # pyright: ignore


def new_prm_spec(section: PRMConfig) -> Any:
    """Return how a PRM that is trained is read; what it is trained on is filled in by the training."""
    from stepladder.prm.specs import PRMSpec

    if section.loss.startswith("implicit"):
        return PRMSpec(family="implicit", beta=section.beta, accumulate=True)
    if section.loss in ("hl-gauss", "two-hot"):
        return PRMSpec(bins=section.bins, transform="identity")
    return PRMSpec(family="value-head" if section.head == "value" else "two-class")


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
