"""vLLM engines of a configuration: their settings, and whether this machine can run them."""

from collections.abc import Sequence
from dataclasses import fields

from stepladder.lm.settings import EngineOptions, EngineSettings
from stepladder.loops.config.run import Config
from stepladder.loops.runs.workers import Task, worker_pool
from stepladder.prm.sources import prm_members, reads_policy_body


def engine_settings(config: Config, memory_share: float) -> EngineSettings:
    """Return the settings of an engine that takes a share of each GPU's memory, in (0, 1]."""
    section = config.policy.vllm
    return EngineSettings(
        **{each.name: getattr(section, each.name) for each in fields(EngineOptions)},
        dtype=config.policy.dtype,
        memory_share=memory_share,
        max_batch=config.policy.max_batch,
        trust_remote_code=config.policy.trust_remote_code,
    )


def check_engines(config: Config, policies: Sequence[str]) -> None:
    """Refuse models that vLLM could not serve on this machine, before any is trained: what is trained keeps the shape of its start.

    vLLM is asked in a process of its own, which ends with its imports and what they hold of a GPU. Nodes of a cluster may have other
    devices than this machine, so they are not judged by it.

    Args:
        config: The configuration.
        policies: Policies that rounds start from.

    Raises:
        ConfigError: If an option of vLLM is unknown or reserved.
        CheckpointError: If vLLM cannot serve a model here.
    """
    wanted = [] if config.run.cluster != "local" else _checks(config, policies)
    if wanted:
        with worker_pool(1, threads=1) as pool:
            pool.run(wanted, on_progress=lambda progress: None)


def _checks(config: Config, policies: Sequence[str]) -> list[Task[None]]:
    section, prm = config.policy.vllm, config.prm
    samples, scores = config.policy.backend == "vllm", prm.enabled and prm.backend == "vllm"
    if not (samples or scores):
        return []
    # Only now: it loads torch's compiler.
    from stepladder.lm.vllm_start import check_engine

    tasks = []
    if samples:
        settings = engine_settings(config, section.memory_share)
        tasks += [Task.of(check_engine, source=policy, task="generate", settings=settings) for policy in policies]
    if scores:
        settings = engine_settings(config, section.prm_memory_share)
        # Without a model of its own, the PRM is made from the policy.
        bodies = list(policies) if prm.model is None else [member for member in prm_members(prm.model) if not reads_policy_body(member)]
        tasks += [Task.of(check_engine, source=body, task="embed", settings=settings) for body in bodies]
    return tasks
