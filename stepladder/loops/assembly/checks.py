"""Checks of a configuration before any work starts."""

from importlib.util import find_spec
from math import floor
from pathlib import Path
from typing import get_args

from stepladder.data.step_checks.sandbox import check_sandbox
from stepladder.errors import CheckpointError, ConfigError
from stepladder.hub import check_model_source
from stepladder.lm.families import ENCODER, TESTED, unserved_parts
from stepladder.lm.settings import LoraSettings, StageSettings
from stepladder.lm.trackers import check_trackers
from stepladder.loops.assembly.devices import uses_gpu
from stepladder.loops.assembly.search import build_method, search_budget
from stepladder.loops.assembly.tools import check_tool
from stepladder.loops.config.models import PolicyConfig
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import all_settings, distinct_rounds, round_config
from stepladder.loops.config.search import AbstentionConfig, CodeCheck
from stepladder.loops.config.training import PRMConfig, TreeTarget, VerdictLoss
from stepladder.loops.runs.ray_cluster import check_ray
from stepladder.loops.runs.workers import gpu_names
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.mcts.settings.growth import Steps
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import SPEC_FILE, PRMSpec
from stepladder.settings import RuleName


def check_rounds(config: Config) -> None:
    """Check the settings of a run, and those of every round with settings of its own; errors as for the other checks."""
    check_cluster(config)
    check_overlap(config)
    _check(config)
    climb = config.rules.hill_climb
    if climb is not None:
        try:
            _check(round_config(config, 1, {climb.setting: climb.start}))
        except ConfigError as error:
            raise ConfigError(f"rules.hill_climb.start: {climb.setting} would be {climb.start!r} in round 1: {error}") from None
    for number in distinct_rounds(config):
        try:
            _check(round_config(config, number))
        except ConfigError as error:
            raise ConfigError(f"round {number}: {error}") from None


def check_cluster(config: Config) -> None:
    """Check that a cluster that the workers are to run on can be used; errors as for ``check_ray``.

    Raises:
        ConfigError: Also if a worker would have fewer GPUs than its model has parts.
    """
    if config.run.cluster != "ray":
        return
    gpus, parts = config.run.ray.gpus, config.policy.vllm.tensor_parallel
    if config.policy.backend == "vllm" and gpus is not None and 1 < parts != gpus:
        raise ConfigError(
            f"run.ray.gpus: a worker must have as many GPUs as its model has parts (policy.vllm.tensor_parallel = {parts}): got {gpus:g} "
            "-- leave it out"
        )
    check_ray(config.run.ray)


def _check(config: Config) -> None:
    check_searches(config)
    check_labels(config)
    check_prm(config.prm, trust_remote_code=config.policy.trust_remote_code)
    check_joint(config)
    check_judge(config)
    check_refinement(config)
    check_start(config)
    check_backends(config, trains=True)
    check_training(config)
    if config.rules.balance is not None:
        check_balance(config)


def check_overlap(config: Config) -> None:
    """Check that rounds can overlap, if they are to.

    Raises:
        ConfigError: If a round needs what the round before it has not decided yet.
    """
    if not config.run.overlap:
        return
    needs = {
        "run.update_every": (config.run.update_every, "trains the policy during the search, from the one that the gate leaves"),
        "rules.hill_climb": (config.rules.hill_climb, "chooses the settings of a round by the figures of the one before"),
        "rules.balance": (config.rules.balance, "samples with the best policy before a round begins"),
    }
    for name, (found, why) in needs.items():
        if found is not None:
            raise ConfigError(f"run.overlap: the next round begins before the gate decides, and {name} {why}: got both -- leave one out")


def check_balance(config: Config) -> None:
    """Check that the search takes the temperature that the balance rule sets.

    Raises:
        ConfigError: If it does not.
    """
    try:
        resolve_method(config.search.method, **{**config.search.options, "temperature": config.rules.balance.temperatures.low})  # pyright: ignore[reportOptionalMemberAccess]
    except ConfigError as error:
        raise ConfigError(f"rules.balance: sets search.options.temperature, which the method must take: {error}") from None


def check_joint(config: Config) -> None:
    """Check that the SFT stage, which trains a two-head model, is the only training of the policy.

    Raises:
        ConfigError: If it is not, or cannot train both heads.
    """
    if not config.prm.enabled or config.prm.body != "joint":
        return
    needs = {
        "sft.enabled": (config.sft.enabled, True),
        "sft.lora": (config.sft.lora, None),
        "preference.enabled": (config.preference.enabled, False),
        "gradient.enabled": (config.gradient.enabled, False),
        "labels.soft_targets": (config.labels.soft_targets.type, "none"),
        "training.accelerate_config": (config.training.accelerate_config, None),
    }
    for name, (found, expected) in needs.items():
        if found != expected:
            raise ConfigError(
                f"prm.body: 'joint' trains policy and head together in the SFT stage, after which nothing may move the policy: needs "
                f"{name} {expected!r}, got {found!r} -- set it, or use prm.body = 'policy'"
            )


def check_judge(config: Config) -> None:
    """Check that verdicts train a judge.

    Raises:
        ConfigError: If ``prm.spec`` is of another family, or a teacher does not exist.
    """
    section = config.prm
    if not (section.trains and isinstance(section.loss, VerdictLoss)):
        return
    source = PRMSource(model=config.policy.model, spec=section.spec, spec_options=tuple(section.spec_options.items()))
    if (family := source.resolve().family) != "judge":
        raise ConfigError(f"prm.loss: 'verdicts' trains a judge: got prm.spec {section.spec!r}, of the family {family!r} -- use 'judge'")
    if section.loss.teacher is not None:
        _is_directory("prm.loss.teacher", section.loss.teacher)


def check_refinement(config: Config) -> None:
    """Check that a judge refines, from the first round on, and that the policy learns from pairs.

    Raises:
        ConfigError: If not.
    """
    if config.search.refinement is None:
        return
    needs = {
        "prm.loss": (config.prm.trains and config.prm.loss.type, "verdicts"),
        "prm.when": (config.prm.when, "before-search"),
        "prm.ensemble": (config.prm.ensemble, 1),
        "preference.enabled": (config.preference.enabled and not config.preference.unpaired, True),
        "run.update_every": (config.run.update_every, None),
        "search.tool": (config.search.tool, None),
        "search.actions": (config.search.actions, {}),
    }
    for name, (found, expected) in needs.items():
        if found != expected:
            raise ConfigError(
                f"search.refinement: a judge that is trained before the search refines, and the policy learns from pairs: needs {name} "
                f"{expected!r}, got {found!r} -- set it, or leave search.refinement out"
            )


def check_start(config: Config) -> None:
    """Check that a policy to start from exists if it is a path, and can be served; errors as for ``check_prm``."""
    if config.start_model is None or not _is_directory("start_model", config.start_model):
        return
    _refuse_head("start_model", Path(config.start_model))
    if config.policy.backend == "transformers":
        _check_family("start_model", Path(config.start_model), trust_remote_code=config.policy.trust_remote_code)


def check_searches(config: Config) -> None:
    """Check both search methods before any work starts.

    Raises:
        ConfigError: If a method or option is unknown, a wave is larger than the simulations it is part of, or ``search.allocation`` does
            not match the caps of the search, or ``search.start`` not the method and the PRM.
    """
    config.search.allocation.check_with(search_budget(config.search))
    if config.search.start == "first-samples":
        _check_first_samples(config)
    for name, section in (("search", config.search), ("evaluate", config.evaluate)):
        wave = build_method(config, section).selection.wave
        if wave > section.simulations:
            raise ConfigError(
                f"{name}.options.wave: must be at most {name}.simulations: got {wave} > {section.simulations} -- lower the wave"
            )
        if config.search.actions:
            check_actions(build_method(config, section), place=f"{name}.options")


def _check_first_samples(config: Config) -> None:
    where, prm = "search.start: 'first-samples'", config.prm
    if not prm.trains or prm.when != "before-search":
        raise ConfigError(
            f"{where} needs a PRM that each round trains before its search: got prm.enabled {prm.enabled}, prm.start {prm.start!r} and "
            f"prm.when {prm.when!r} -- set prm.when = 'before-search', or start with the 'question'"
        )
    if not build_method(config, config.search).samples_solutions:
        raise ConfigError(
            f"{where} needs a method that draws solutions, such as restart: got {config.search.method!r} -- start with the 'question'"
        )
    if config.run.update_every is not None:
        raise ConfigError(f"{where} does not go with run.update_every, which searches in parts: got {config.run.update_every}")


def check_actions(method: SearchMethod, *, place: str) -> None:
    """Check that the samples of a method may be shared among actions.

    Raises:
        ConfigError: If they are to be different from each other, which holds for samples after one prompt alone.
    """
    if isinstance(method.growth, Steps) and method.growth.siblings == "distinct":
        raise ConfigError(
            f"{place}.siblings: must not be 'distinct' with search.actions, whose samples have prompts of their own: got {method.name!r} "
            "-- leave one out"
        )


def check_labels(config: Config) -> None:
    """Check that the label settings match the format of steps and the other sections.

    Raises:
        ConfigError: If a revision would not end a step, or a setting needs solved examples or a PRM that the run does not have.
    """
    _check_sampler(config)
    by_score = {"value": config.labels.value, "trace_by": config.labels.trace_by}
    for name, chosen in by_score.items():
        if chosen == "score" and not config.prm.enabled:
            raise ConfigError(f"labels.{name}: 'score' needs a PRM: got prm.enabled = false -- choose another or enable the PRM")
    if config.labels.replay and config.warmup.solutions is None:
        raise ConfigError(
            f"labels.replay: needs solved examples: got {config.labels.replay} without warmup.solutions -- name a file or leave it out"
        )
    if config.labels.verdicts:
        _check_verdicts(config)
    if config.labels.abstention is not None:
        _check_abstention(config.labels.abstention, config)
    climb = config.rules.hill_climb
    if climb is not None and climb.figure == "reliability" and config.labels.abstention is None:
        raise ConfigError("rules.hill_climb.figure: 'reliability' is that of a policy that may abstain: got no labels.abstention -- set it")
    _check_prm_replay(config)
    _check_advantages(config)
    if config.run.update_every is not None:
        _check_online(config)
    text, end = config.labels.revision_text, config.format.step_end
    if text and config.format.steps == "text" and not text.endswith(end):
        raise ConfigError(f"labels.revision_text: must end with format.step_end {end!r}, because a step follows: got {text!r} -- add it")


def _check_abstention(rule: AbstentionConfig, config: Config) -> None:
    from stepladder.loops.assembly.policies import step_format

    found = step_format(config).extract_answer(rule.text)
    if found != rule.answer:
        raise ConfigError(
            f"labels.abstention: the answer must be read out of the text, as answers of this task are: got {found!r} out of {rule.text!r}, "
            f"expected {rule.answer!r} -- write the text as a solution of the task writes its answer"
        )


def _check_verdicts(config: Config) -> None:
    section = config.prm
    if not (section.enabled and section.is_policy):
        raise ConfigError(
            f"labels.verdicts: the policy learns to judge only where it judges: got prm.start {section.start!r} -- set prm.start = 'self', "
            "or leave it out"
        )
    source = PRMSource(model=config.policy.model, spec=section.spec, spec_options=tuple(section.spec_options.items()))
    if not source.resolve().verdict_after:
        raise ConfigError(
            f"labels.verdicts: verdicts are learned as one word: prm.spec {section.spec!r} has no verdict_after -- use 'self-evaluation', "
            "or set it in prm.spec_options"
        )


def _check_advantages(config: Config) -> None:
    if not config.gradient.enabled:
        return
    rule = config.labels.advantages
    if not config.prm.enabled and (rule.needs_scores or getattr(rule, "by", None) == "score"):
        raise ConfigError(
            f"labels.advantages: {rule.type!r} goes by the scores of steps: got prm.enabled = false -- choose another or enable the PRM"
        )
    if config.labels.data.type == "accumulate":
        raise ConfigError(
            "labels.data: policy gradients compare with the policy that sampled, which must not be long gone: got 'accumulate' -- use "
            "'replace', or 'window' or 'on-policy' with a small window"
        )


def _check_online(config: Config) -> None:
    """Check that the policy can be trained during the search."""
    others = [name for name in ("sft", "preference") if getattr(config, name).enabled]
    needs = {
        "gradient.enabled": (config.gradient.enabled, True),
        **{f"{name}.enabled": (True, False) for name in others},
        "labels.data": (config.labels.data.type, "replace"),
        "search.allocation": (config.search.allocation.type, "uniform"),
        "start_from": (config.start_from, "best"),
        "gradient.lora": (config.gradient.lora, None),
        "gradient.held_out": (config.gradient.held_out, 0),
        "training.num_processes": (config.training.num_processes, 1),
        "training.accelerate_config": (config.training.accelerate_config, None),
    }
    if config.policy.backend != "transformers":
        raise ConfigError(
            "run.update_every: changes the weights of the policy in place, which only the backend 'transformers' can: got policy.backend "
            f"{config.policy.backend!r} -- use 'transformers', or leave run.update_every out"
        )
    for name, (found, expected) in needs.items():
        if found != expected:
            raise ConfigError(
                f"run.update_every: trains the policy during the search, by policy gradients alone: needs {name} {expected!r}, got "
                f"{found!r} -- set it, or leave run.update_every out"
            )


def _check_sampler(config: Config) -> None:
    """Refuse trainings that read log-probabilities of the sampler where samples have prompts that are not trained."""
    preference = config.preference
    readers = {
        "preference.reference 'sampler'": preference.reference == "sampler",
        f"preference.loss {preference.loss.type!r}": getattr(preference.loss, "needs_sampler", False),
        "gradient": config.gradient.enabled,
    }
    reader = next((name for name, reads in readers.items() if reads), None)
    if config.search.actions and reader is not None:
        raise ConfigError(
            f"search.actions: {reader} needs log-probabilities after the prompt that is trained, and these samples have other prompts "
            "-- choose another training, or leave the actions out"
        )


def _check_prm_replay(config: Config) -> None:
    if config.prm.replay and config.warmup.solutions is None:
        raise ConfigError(
            f"prm.replay: needs solved examples: got {config.prm.replay} without warmup.solutions -- name a file or leave it out"
        )
    if config.prm.replay and not isinstance(config.prm.target, TreeTarget):
        raise ConfigError(
            f"prm.replay: solved examples have no target {config.prm.target.type!r}: got {config.prm.replay} -- choose another target, or "
            "leave it out"
        )


def check_policy_name(config: PolicyConfig) -> None:
    """Check that a policy's hub id is available, before libraries of models load for seconds; a path need not exist yet.

    Raises:
        CheckpointError: If the hub is needed and cannot be reached.
    """
    if not _is_path(config.model):
        check_model_source(config.model)


def check_model(config: PolicyConfig) -> None:
    """Check that a policy path is a model directory with a tokenizer, or that its hub id is available.

    Raises:
        ConfigError: If the path does not exist, or the transformers backend cannot serve the model.
        CheckpointError: If a file of the model is missing, or the hub is needed and cannot be reached.
    """
    if not _is_directory("policy.model", config.model):
        return
    path = Path(config.model)
    _refuse_head("policy.model", path)
    for names in (("config.json",), ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        if not any((path / name).is_file() for name in names):
            raise CheckpointError(f"{path}: a model directory must hold {names[0]}: it is missing -- save model and tokenizer there")
    if config.backend == "transformers":
        _check_family("policy.model", path, trust_remote_code=config.trust_remote_code)


def check_prm(config: PRMConfig, *, trust_remote_code: bool = False) -> None:
    """Check that the given PRM and its reference exist if they are paths, because they are loaded only after the first training.

    A run without a PRM looks for none.

    Raises:
        ConfigError: If a path does not exist, or the transformers backend cannot serve the model, or how a PRM that stays as it is scores
            is not known, or a value head is in the place of a whole model.
    """
    if not config.enabled:
        return
    for name, source in (("prm.model", config.model), ("prm.reference", config.reference)):
        if source is None or not _is_directory(name, source):
            continue
        if name == "prm.reference" or (config.trains and config.body == "own"):
            _refuse_head(name, Path(source), remedy="name that policy, or keep the head with prm.start = 'fixed'")
        if config.backend == "transformers":
            _check_family(name, Path(source), trust_remote_code=trust_remote_code)
    if config.start == "fixed" and config.model is not None and Path(config.model).is_dir():
        PRMSource(model=config.model, spec=config.spec, spec_options=tuple(config.spec_options.items())).resolve()


def _refuse_head(setting: str, directory: Path, *, remedy: str = "name that policy, and the head as the PRM") -> None:
    """Refuse a value head without a body in the place of a model that has one."""
    if (directory / SPEC_FILE).is_file() and not (directory / "config.json").is_file():
        spec = PRMSpec.load(directory)
        raise ConfigError(f"{setting}: must be a language model: {directory} is a value head on the body of {spec.body} -- {remedy}")


def _check_family(setting: str, directory: Path, *, trust_remote_code: bool) -> None:
    """Refuse a model whose layers the transformers backend cannot serve now, not after the first training."""
    # A directory without a configuration is refused where it is loaded, with what is missing.
    if not (directory / "config.json").is_file():
        return
    from stepladder.lm.loading import load_model_settings

    named, _ = load_model_settings(directory, trust_remote_code=trust_remote_code)
    config = named.get_text_config()
    problems = unserved_parts(config)
    if not problems and config.model_type not in TESTED:
        from stepladder.lm.flat import fixed_attention

        problems = fixed_attention(config)
    if problems:
        # vLLM generates with decoders alone.
        remedy = "use a decoder, such as those of docs/backends.md" if ENCODER in problems else "use backend 'vllm', or another model"
        raise ConfigError(
            f"{setting}: the transformers backend serves decoders whose layers attend to earlier tokens: {directory} has "
            f"{', '.join(problems)} -- {remedy}"
        )


def _is_directory(setting: str, source: str) -> bool:
    """Say whether a model is a directory, and not a hub id. Missing paths and unavailable hub ids are refused."""
    path = Path(source)
    if not path.is_dir() and _is_path(source):
        found = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{setting}: must be a model directory or a hub id: {source!r} {found} -- correct the path")
    check_model_source(source)
    return path.is_dir()


def _is_path(source: str) -> bool:
    """Say whether a source is certainly a path, and no hub id."""
    return Path(source).exists() or Path(source).is_absolute() or source.startswith((".", "~"))


def check_backends(config: Config, *, trains: bool) -> None:
    """Check that the configured backends can do the work, before any is done; nothing is loaded.

    Args:
        config: The configuration.
        trains: Whether rounds change the policy's weights.

    Raises:
        ConfigError: If vLLM is not installed, or a server would have to take new weights, or GPUs are missing, or code for a check of steps
            cannot be sandboxed.
    """
    check_tool(config)
    if trains and config.prm.enabled and config.prm.body != "own" and config.policy.backend != "transformers":
        raise ConfigError(
            f"prm.body: {config.prm.body!r} reads the hidden states of the policy, which only the backend 'transformers' gives: got "
            f"policy.backend {config.policy.backend!r} -- set policy.backend = 'transformers', or prm.body = 'own'"
        )
    if config.format.steps not in get_args(RuleName):
        from stepladder.lm.step_rules import try_step_rule

        try_step_rule(config.format.steps)
    searches = [config.evaluate.scores, *([config.search.scores] if trains else [])]
    if any(isinstance(scores.check, CodeCheck) and not scores.check.allow_unsandboxed for scores in searches):
        check_sandbox()
    backends = {
        "policy.backend": config.policy.backend,
        **({"prm.backend": config.prm.backend} if config.prm.enabled or not trains else {}),
    }
    on_vllm = [name for name, backend in backends.items() if backend == "vllm"]
    _check_device(config, trains=trains, on_vllm=bool(on_vllm))
    if on_vllm:
        if find_spec("vllm") is None:
            raise ConfigError(
                f"{on_vllm[0]}: 'vllm' needs the package vllm: it is not installed -- pip install 'stepladder[vllm]' where there is a "
                "GPU, or see docs/backends.md for the CPU"
            )
        _check_shares(config, on_vllm)
        wanted, found = config.policy.vllm.data_parallel * config.policy.vllm.tensor_parallel, len(gpu_names())
        if trains and config.run.cluster == "local" and wanted > max(found, 1):
            raise ConfigError(
                f"policy.vllm: data_parallel * tensor_parallel must be at most the number of GPUs: got {wanted} > {found} -- lower one"
            )
    if trains and config.policy.backend == "openai":
        raise ConfigError(
            "policy.backend: evolve trains the policy, and a server keeps the weights it was started with: got 'openai' -- use 'vllm' or "
            "'transformers'"
        )


def _check_device(config: Config, *, trains: bool, on_vllm: bool) -> None:
    """Check that the device exists, if this machine is the one that works, and that all parts of the work can take it."""
    device = config.policy.device
    if not device.startswith("cuda") or (trains and config.run.cluster != "local"):
        return
    from stepladder.lm.loading import resolve_device

    number = resolve_device(device).index or 0
    if number and (trains or on_vllm):
        raise ConfigError(
            f"policy.device: must be 'auto', 'cpu' or 'cuda' for {'vLLM' if on_vllm else 'trainings'}, where one GPU of several is chosen "
            f"outside: got {device!r} -- set CUDA_VISIBLE_DEVICES={number} in the environment, and 'cuda'"
        )


def _check_shares(config: Config, on_vllm: list[str]) -> None:
    """Refuse engines that do not fit on a GPU together, and engines of several workers that would disturb each other's start.

    Args:
        config: The configuration.
        on_vllm: Which of ``policy.backend`` and ``prm.backend`` are vLLM, at least one.

    Raises:
        ConfigError: See above.
    """
    section = config.policy.vllm
    of_each = {"policy.backend": "memory_share", "prm.backend": "prm_memory_share"}
    settings = [of_each[name] for name in on_vllm]
    shares = [getattr(section, name) for name in settings]
    if sum(shares) > 1:
        raise ConfigError(
            f"policy.vllm: memory_share and prm_memory_share of engines that share a GPU must sum to at most 1: got {shares[0]} and "
            f"{shares[1]} -- lower one"
        )
    together = config.run.workers
    shared = config.run.cluster == "local" and uses_gpu(config.policy.device) and section.data_parallel == 1 and together > 1
    if not shared:
        return
    if together * sum(shares) > 1:
        # Rounded down, or as many of them would not fit again.
        most = floor(100 / (together * len(shares))) / 100
        raise ConfigError(
            f"run.workers: the engines of {together} workers that share the GPUs must fit together: got {together} times a memory_share of "
            f"{sum(shares):g} -- set policy.vllm.{' and '.join(settings)} to {most:g} or less, or data_parallel for a GPU each"
        )
    if "kv_cache_memory_bytes" not in section.options:
        raise ConfigError(
            "policy.vllm.options: engines of several workers on one GPU need the size of their cache, since vLLM measures the free memory "
            "when it starts, and they start side by side: got no kv_cache_memory_bytes -- set "
            "policy.vllm.options.kv_cache_memory_bytes=8000000000"
        )


def check_training(config: Config) -> None:
    """Check that the trainings can run as configured, before any work is done; nothing is loaded.

    Raises:
        ConfigError: If a package, a file or GPUs are missing.
    """
    section = config.training
    check_trackers(section.report_to)
    if section.accelerate_config is not None:
        _check_accelerate(section.accelerate_config)
    is_local = config.run.cluster == "local" and section.num_processes > 1
    if is_local and uses_gpu(config.policy.device) and section.num_processes > len(gpu_names()):
        raise ConfigError(
            f"training.num_processes: must be at most the number of GPUs: got {section.num_processes} > {len(gpu_names())} -- lower it"
        )
    quantised = [name for name, stage in _stages(config).items() if stage.lora is not None and stage.lora.four_bit]
    if quantised and find_spec("bitsandbytes") is None:
        raise ConfigError(f"{quantised[0]}.lora.four_bit: needs the package bitsandbytes: it is not installed -- pip install bitsandbytes")


def _check_accelerate(path: str) -> None:
    """Check that accelerate can read a file, which it would otherwise do in the first training."""
    if not Path(path).is_file():
        raise ConfigError(f"training.accelerate_config: must be a file: {path!r} does not exist -- correct the path")
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        load_config_from_file(path)
    # The file may be no YAML or JSON, no table, or a table that accelerate refuses: errors of many kinds.
    except Exception as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"training.accelerate_config: {path}: must be a file of `accelerate config`: {said} -- write one with it, or take one of "
            "configs/accelerate"
        ) from error


def check_adapters(config: Config) -> None:
    """Check that the policy has the modules that the run and its rounds name for adapters, before any work; no weights are loaded.

    Raises:
        ConfigError: If it has not.
    """
    for settings in all_settings(config):
        for name, stage in _stages(settings).items():
            if stage.lora is None or stage.lora.target_modules == LoraSettings().target_modules:
                continue
            # The import takes a second, and few runs name modules.
            from stepladder.lm.adapters import check_adapters as check_modules

            try:
                check_modules(config.policy.model, stage.lora, trust_remote_code=config.policy.trust_remote_code)
            except ConfigError as error:
                raise ConfigError(f"{name}.{error}") from None


def _stages(config: Config) -> dict[str, StageSettings]:
    """Return the settings of every training, used or not, by section."""
    return {
        "warmup.train": config.warmup.train,
        "sft": config.sft,
        "preference": config.preference,
        "gradient": config.gradient,
        "prm.train": config.prm.train,
    }
