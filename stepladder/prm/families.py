"""The families of process reward models: the requirements of each on a spec, and the function that opens its models.

A new family is a row of ``FAMILIES`` and the function that the row names (``openers.py`` has those of the families here). A spec that says
``family="NAME"`` then works in ``evolve``, ``solve``, ``prm score`` and ``prm eval``, alone and in ensembles. No model library is imported
here, so that specs can be read and checked without one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepladder.prm.open import ModelAccess, OpenedPRM
    from stepladder.prm.sources import PRMSource
    from stepladder.prm.specs import PRMSpec

Opener = Callable[["PRMSource", "PRMSpec", "ModelAccess"], "OpenedPRM"]
"""Opens a model, given its source, its spec, and the provider of weights and engines."""


def _nothing_lacks(spec: "PRMSpec") -> str | None:
    return None


def _two_outputs(spec: "PRMSpec") -> int:
    return 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of models whose outputs become scores in the same way."""

    opener: str
    """``module:function`` of its ``Opener``, imported when a model is opened."""
    backends: tuple[str, ...] = ("transformers",)
    """Backends that can forward its models: some of ``sources.BACKENDS``."""
    num_outputs: "Callable[[PRMSpec], int]" = _two_outputs
    """Outputs per token that make up a score."""
    reads_policy_tokens: bool = False
    """Whether its models may read the policy's own tokens (prompt ``tokens``) and not only text."""
    learns_from_labels: bool = False
    """Whether it is trained on steps with labels."""
    lacks: "Callable[[PRMSpec], str | None]" = _nothing_lacks
    """Names the first thing that a spec of the family lacks; None if it is complete."""

    def open_with(self) -> Opener:
        """Import the function that opens models of the family."""
        module, _, name = self.opener.partition(":")
        return getattr(import_module(module), name)


def _value_head_outputs(spec: "PRMSpec") -> int:
    return spec.bins * spec.heads


def _lacks_words(spec: "PRMSpec") -> str | None:
    return None if spec.good and spec.bad else "a good and a bad token"


def _lacks_for_ratio(spec: "PRMSpec") -> str | None:
    return None if spec.read == "step-end" else "the read 'step-end' for an implicit model"


def _lacks_for_surprisal(spec: "PRMSpec") -> str | None:
    if spec.read != "step-end":
        return "the read 'step-end' for a surprisal"
    return None if spec.center >= 0 and spec.width > 0 else "a center of at least 0 and a positive width"


def _lacks_for_verdict(spec: "PRMSpec") -> str | None:
    if spec.verdict_after or _is_verdict(spec.verdict):
        return _lacks_words(spec)
    return _lacks_words(spec) or "a verdict pattern, with one group at most, or verdict_after, for a judge"


def _is_verdict(pattern: str) -> bool:
    """Whether a regular expression can be compiled and gives one word per match."""
    try:
        return bool(pattern) and re.compile(pattern).groups <= 1
    except re.error:
        return False


_OPENERS = "stepladder.prm.openers"
_BOTH = ("transformers", "vllm")

FAMILIES: dict[str, Family] = {
    "value-head": Family(
        opener=f"{_OPENERS}:open_head",
        backends=_BOTH,
        num_outputs=_value_head_outputs,
        reads_policy_tokens=True,
        learns_from_labels=True,
    ),
    "two-class": Family(opener=f"{_OPENERS}:open_head", backends=_BOTH, reads_policy_tokens=True, learns_from_labels=True),
    "probe": Family(opener=f"{_OPENERS}:open_probe", num_outputs=_value_head_outputs, reads_policy_tokens=True, learns_from_labels=True),
    "vocabulary": Family(opener=f"{_OPENERS}:open_vocabulary", backends=_BOTH, learns_from_labels=True, lacks=_lacks_words),
    "implicit": Family(opener=f"{_OPENERS}:open_implicit", backends=_BOTH, reads_policy_tokens=True, lacks=_lacks_for_ratio),
    "surprisal": Family(opener=f"{_OPENERS}:open_surprisal", backends=_BOTH, reads_policy_tokens=True, lacks=_lacks_for_surprisal),
    "judge": Family(opener=f"{_OPENERS}:open_judge", lacks=_lacks_for_verdict),
}
"""The families by name."""
