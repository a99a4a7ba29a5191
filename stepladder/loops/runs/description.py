"""What a run does, in words, for those who see its report or its first lines without its settings."""

import json
from pathlib import Path

from stepladder.errors import CheckpointError
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import EvaluateConfig, SearchConfig
from stepladder.loops.runs.flops import count_parameters

_TASK_FILE = "task.json"
"""File in the directory of a task, two above its problems, in which it may state its ``name`` and what it is ``about``."""


def task_words(config: Config) -> str:
    """Return the task, or the source of its problems, and how answers are graded."""
    problems = config.problems
    verified = f"verifier {Path(problems.verifier).name}" if problems.verifier else f"rule {problems.rule}"
    return f"{_stated_task(Path(problems.train)) or _short(problems.train)}, graded by {verified}"


def _stated_task(train: Path) -> str | None:
    try:
        facts = json.loads((train.parent.parent / _TASK_FILE).read_text(encoding="utf-8"))
        return f"{facts['name']} ({facts['about']})"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_words(config: Config, model: str | None = None) -> str:
    """Return the policy with its size and its backend."""
    source = model or config.policy.model
    size = parameter_words(Path(source))
    device = "" if config.policy.device == "auto" else f" on {config.policy.device}"
    return f"{_short(source)}{size}, {config.policy.backend}{device}"


def parameter_words(model: Path) -> str:
    """Return the number of parameters of a model directory as a clause; empty if it is not known."""
    try:
        parameters = count_parameters(model) if model.is_dir() else None
    except CheckpointError:
        return ""
    if not parameters:
        return ""
    unit, name = (1e9, "B") if parameters >= 1e9 else (1e6, "M") if parameters >= 1e5 else (1e3, "k")
    return f" ({parameters / unit:.3g}{name} parameters)"


def search_words(section: SearchConfig | EvaluateConfig) -> str:
    """Return method and caps of a search."""
    # A step that has begun is finished, so a search may take more.
    tokens = "" if section.max_tokens is None else f", none begun after {section.max_tokens:,} tokens"
    options = ", ".join(f"{name}={value}" for name, value in section.options.items())
    return f"{section.method}{f' ({options})' if options else ''}, at most {section.simulations:,} simulations a problem{tokens}"


def prm_words(config: Config) -> str:
    """Return where the PRM comes from."""
    prm = config.prm
    if not prm.enabled:
        return "none: the search has no step scores"
    if prm.is_policy:
        return f"{'the policy itself' if prm.start == 'self' else 'the warmed-up policy'}, read as {prm.spec}, not trained as a PRM"
    if prm.start == "fixed":
        return f"{_short(str(prm.model))}{parameter_words(Path(str(prm.model)))}, given and not trained"
    when = "before its search" if prm.when == "before-search" else "after its search"
    ensemble = f", {prm.ensemble} of them" if prm.ensemble > 1 else ""
    if prm.body == "joint":
        return f"trained with the policy, on its body ({prm.loss.type})"
    if prm.body == "policy":
        ensemble += ", on the body of the policy"
    return f"trained in every round {when} ({prm.loss if isinstance(prm.loss, str) else prm.loss.type}){ensemble}"


def _short(source: str) -> str:
    """Return a hub id, or the last parts of a path."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source
