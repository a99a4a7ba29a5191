"""The models of an ensemble, and judges on the embedded engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepladder.prm.specs import PRMSpec
from stepladder.types import Problem

if TYPE_CHECKING:
    from stepladder.prm.judge import Judge


def prm_members(directory: str) -> list[str]:
    """Return the directories of an ensemble's models, in order; of a single model its own."""
    return sorted(str(path) for path in Path(directory).glob("member-[0-9][0-9]")) or [directory]


def load_judge(model: str, places: dict[str, Any]) -> tuple[Any, Any]:
    """Load the language model and the tokenizer of a judge."""
    from stepladder.lm.loading import load_causal_lm, load_tokenizer

    return load_causal_lm(model, **places), load_tokenizer(model, trust_remote_code=places["trust_remote_code"])


def build_judge(model: Any, tokenizer: Any, spec: PRMSpec, *, seed: int) -> "Judge":
    """Return a judge on the embedded engine."""
    from stepladder.policy.backends.transformers import TransformersPolicy
    from stepladder.policy.prompts import PromptRenderer, StepFormat
    from stepladder.prm.judge import Judge

    step_format = StepFormat(prompt_template="{question}", step_end="\n", answer_pattern=spec.verdict, chat=spec.prompt == "chat")
    renderer = PromptRenderer(tokenizer, step_format)
    policy = TransformersPolicy(model, tokenizer, step_format)
    return Judge(policy, spec, lambda prompt: renderer.prompt_ids(Problem(id="judge", question=prompt)), seed=seed)
