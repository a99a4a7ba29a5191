"""The preference losses by name, each with its own settings. Nothing here loads a model library.

To add a loss, write its function in ``preference_losses.py`` and its class here, and add the class to ``PairLoss`` or ``UnpairedLoss``.
That line also adds it to the configuration, the refusals, docs/training.md and the tests that every loss must pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from stepladder.settings import NonNegative, Positive, Share, check_bounds

if TYPE_CHECKING:
    import torch

    from stepladder.policy.objectives import PairTerms, UnpairedTerms

Smoothing = Literal["visits", "agreement", "uncertainty"]
"""Rules that estimate for each pair the probability that it is flipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _PairLoss:
    """A loss of a chosen and a rejected completion, with log-ratios to a reference model."""

    function: ClassVar[str]
    """Name of its function in ``preference_losses.py``."""
    needs_reference: ClassVar[bool] = True
    """Whether the log-probabilities of a reference model enter."""
    needs_sampler: ClassVar[bool] = False
    """Whether those of the policy that sampled the pairs enter."""

    beta: Positive = 0.1
    """Strength of the pull to the reference model, > 0; without a reference, the scale of the log-probabilities."""
    sft_weight: NonNegative = 0.0
    """Weight of an additional term, the chosen completion's mean negative log-likelihood, >= 0."""

    def __post_init__(self) -> None:
        check_bounds(self, where="preference training")

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.sums, **terms.reference, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class DPO(_PairLoss):
    """Direct preference optimisation."""

    function: ClassVar[str] = "dpo_losses"
    type: Literal["dpo"] = "dpo"
    """Name of the loss."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] | Smoothing = 0.0
    """Assumed share of flipped pairs, in [0, 0.5), or the name of a rule that estimates it for each pair. ``visits`` uses the visits of
    its steps, ``agreement`` (CREAM) the agreement of this round's PRM and the previous one on the siblings, and ``uncertainty`` (UPO) the
    uncertainty that the leaves leave."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        smoothing = terms.smoothing(self.label_smoothing) if isinstance(self.label_smoothing, str) else self.label_smoothing
        return loss_function(self)(*terms.sums, **terms.reference, beta=self.beta, label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class IPO(_PairLoss):
    """Identity preference optimisation."""

    function: ClassVar[str] = "ipo_losses"
    type: Literal["ipo"] = "ipo"
    """Name of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class INPO(_PairLoss):
    """Iterative Nash policy optimisation: it also pulls to the policy that sampled the pairs."""

    function: ClassVar[str] = "inpo_losses"
    needs_sampler: ClassVar[bool] = True
    type: Literal["inpo"] = "inpo"
    """Name of the loss."""
    reference_share: Share = 1 / 3
    """Weight of the reference, in [0, 1]; the policy that sampled the pairs has the rest."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.sums, **terms.reference, **terms.sampler, beta=self.beta, reference_share=self.reference_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class SPPO(_PairLoss):
    """Self-play preference optimisation: it learns how much better the chosen step is."""

    function: ClassVar[str] = "sppo_losses"
    type: Literal["sppo"] = "sppo"
    """Name of the loss."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.sums, **terms.reference, value_margins=terms.value_margins, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class REFUEL(_PairLoss):
    """Regression of the log-ratio margin on the difference of values."""

    function: ClassVar[str] = "refuel_losses"
    type: Literal["refuel"] = "refuel"
    """Name of the loss."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.sums, **terms.reference, value_margins=terms.value_margins, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class APOZero(_PairLoss):
    """Anchored preference optimisation: it raises the chosen side itself."""

    function: ClassVar[str] = "apo_zero_losses"
    type: Literal["apo-zero"] = "apo-zero"
    """Name of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimPO(_PairLoss):
    """Mean log-probabilities with a margin, without a reference."""

    function: ClassVar[str] = "simpo_losses"
    needs_reference: ClassVar[bool] = False
    type: Literal["simpo"] = "simpo"
    """Name of the loss."""
    target_margin: NonNegative = 0.0
    """Target margin, >= 0."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.means, beta=self.beta, target_margin=self.target_margin)


@dataclass(frozen=True, kw_only=True, slots=True)
class ORPO(_PairLoss):
    """Odds ratio of mean probabilities, without a reference. The paper combines it with ``sft_weight = 1``."""

    function: ClassVar[str] = "orpo_losses"
    needs_reference: ClassVar[bool] = False
    type: Literal["orpo"] = "orpo"
    """Name of the loss."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.means, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class CPL(_PairLoss):
    """Contrastive preference learning, without a reference."""

    function: ClassVar[str] = "cpl_losses"
    needs_reference: ClassVar[bool] = False
    type: Literal["cpl"] = "cpl"
    """Name of the loss."""
    bias: Annotated[float, Gt(0), Le(1)] = 1.0
    """Factor on the rejected step's log-probability, in (0, 1]."""

    def losses(self, terms: "PairTerms") -> "torch.Tensor":
        """Return the loss of every pair."""
        return loss_function(self)(*terms.sums, beta=self.beta, bias=self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnpairedLoss:
    """A loss of a completion that is good or bad by itself."""

    function: ClassVar[str]
    """Name of its function in ``preference_losses.py``."""
    needs_reference: ClassVar[bool] = True
    """Whether the log-probabilities of a reference model enter."""
    needs_mismatched: ClassVar[bool] = False
    """Whether the loss uses completions after prompts of other problems, which nobody sampled."""

    beta: Positive = 0.1
    """Strength of the pull to the reference model, > 0."""
    good_weight: NonNegative = 1.0
    """Weight of good completions, >= 0."""
    bad_weight: NonNegative = 1.0
    """Weight of bad completions, >= 0."""

    def __post_init__(self) -> None:
        check_bounds(self, where="preference training")

    @property
    def _weights(self) -> dict[str, float]:
        return {"beta": self.beta, "good_weight": self.good_weight, "bad_weight": self.bad_weight}


@dataclass(frozen=True, kw_only=True, slots=True)
class KTO(_UnpairedLoss):
    """Kahneman-Tversky optimisation: it compares with a reference point that each forward pass estimates."""

    function: ClassVar[str] = "kto_losses"
    needs_mismatched: ClassVar[bool] = True
    type: Literal["kto"] = "kto"
    """Name of the loss."""

    def losses(self, terms: "UnpairedTerms") -> "torch.Tensor":
        """Return the loss of every completion."""
        return loss_function(self)(terms.logps, terms.ref_logps, terms.good, reference_point=terms.reference_point, **self._weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class OREAL(_UnpairedLoss):
    """Outcome-reward learning: it imitates good completions and pushes away from bad ones, the more, the rarer right ones are."""

    function: ClassVar[str] = "oreal_losses"
    type: Literal["oreal"] = "oreal"
    """Name of the loss."""

    def losses(self, terms: "UnpairedTerms") -> "torch.Tensor":
        """Return the loss of every completion."""
        return loss_function(self)(terms.logps, terms.ref_logps, terms.good, prompt_values=terms.prompt_values, **self._weights)


PairLoss = DPO | IPO | INPO | SPPO | REFUEL | APOZero | SimPO | ORPO | CPL
"""Losses of a pair of completions."""
UnpairedLoss = KTO | OREAL
"""Losses of a completion that is good or bad by itself."""
PreferenceLoss = PairLoss | UnpairedLoss
"""Losses of preference training."""
PREFERENCE_LOSSES: dict[str, type[PreferenceLoss]] = {loss().type: loss for loss in get_args(PreferenceLoss)}
"""The losses by name."""


def loss_function(loss: PreferenceLoss | _PairLoss | _UnpairedLoss | type[PreferenceLoss]) -> Callable[..., Any]:
    """Return the function of a loss, which loads torch."""
    return getattr(import_module("stepladder.policy.preference_losses"), loss.function)
