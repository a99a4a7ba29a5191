"""What policy training minimises: log-probabilities of completions, read off plain sequences or off trees, and losses on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stepladder.errors import ConfigError
from stepladder.lm.checks import check_ranges
from stepladder.lm.completions import IGNORE, completion_logps, contrast_sums
from stepladder.lm.training import Batch
from stepladder.policy.preference_losses import (
    agreement_smoothing,
    apo_zero_losses,
    cpl_losses,
    dpo_losses,
    inpo_losses,
    ipo_losses,
    kto_losses,
    kto_reference_point,
    oreal_losses,
    orpo_losses,
    preference_loss,
    refuel_losses,
    sft_loss,
    simpo_losses,
    sppo_losses,
    uncertainty_smoothing,
    visit_smoothing,
)

PairLoss = Literal["dpo", "ipo", "inpo", "sppo", "refuel", "apo-zero", "simpo", "orpo", "cpl"]
"""Losses of a pair of completions."""
UnpairedLoss = Literal["kto", "oreal"]
"""Losses of a completion that is good or bad by itself."""
Smoothing = Literal["visits", "agreement", "uncertainty"]
"""What says of each pair how likely it is the wrong way round."""
_WITHOUT_REFERENCE = ("simpo", "orpo", "cpl")
_ON_VALUES = ("sppo", "refuel")
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ipo": ipo_losses,
    "inpo": inpo_losses,
    "sppo": sppo_losses,
    "refuel": refuel_losses,
    "apo-zero": apo_zero_losses,
}


class CompletionObjective:
    """Mean negative log-likelihood of the completion tokens."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens."""
        return (batch["targets"] != IGNORE).sum()[None]

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the token mean."""
        return sft_loss(completion_logps(model, batch).sum(-1), counts[0].float())


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """Preference loss on sibling steps, with a likelihood term on the chosen ones."""

    loss_name: PairLoss = "dpo"
    """Loss of a pair; each is a function of ``losses.py``."""
    beta: float = 0.1
    """Strength of the pull to the reference, or scale of the log-probabilities where there is none, > 0."""
    label_smoothing: float | Smoothing = 0.0
    """With ``dpo``: assumed share of flipped pairs, in [0, 0.5), or what visits, scorers or leaves say of each pair; see ``losses.py``."""
    reference_share: float = 1 / 3
    """With ``inpo``: weight of the reference beside the policy that sampled the pairs, in [0, 1]."""
    target_margin: float = 0.0
    """With ``simpo``: margin that is aimed at, >= 0."""
    cpl_bias: float = 1.0
    """With ``cpl``: factor on the rejected step's log-probability, in (0, 1]."""
    sft_weight: float = 0.0
    """Weight of the likelihood term, >= 0."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        smoothed = smoothing in get_args(Smoothing) or (isinstance(smoothing, float | int) and 0 <= smoothing < 0.5)
        rules = {
            "loss_name": (f"one of {', '.join(get_args(PairLoss))}", self.loss_name in get_args(PairLoss)),
            "beta": ("> 0", self.beta > 0),
            "label_smoothing": (f"in [0, 0.5) or one of {', '.join(get_args(Smoothing))}", smoothed),
            "reference_share": ("in [0, 1]", 0 <= self.reference_share <= 1),
            "target_margin": (">= 0", self.target_margin >= 0),
            "cpl_bias": ("in (0, 1]", 0 < self.cpl_bias <= 1),
            "sft_weight": (">= 0", self.sft_weight >= 0),
        }
        check_ranges(self, rules, where="preference training")
        if smoothing and self.loss_name != "dpo":
            raise ConfigError(f"preference training: label_smoothing needs loss 'dpo': got {self.loss_name!r} -- set it to 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities enter."""
        return self.loss_name not in _WITHOUT_REFERENCE

    @property
    def needs_sampler(self) -> bool:
        """Whether the log-probabilities of the policy that sampled the pairs enter."""
        return self.loss_name == "inpo"

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of pairs and of tokens in the preferred completions."""
        targets = batch["targets"]
        num_pairs = len(targets) // 2
        return torch.stack([targets.new_tensor(num_pairs), (targets[:num_pairs] != IGNORE).sum()])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean preference loss and of the likelihood term."""
        logps = completion_logps(model, batch)
        return preference_loss(
            self._pair_losses(logps, batch),
            full_chosen_logps=logps[: len(logps) // 2].sum(-1),
            num_tokens=counts[1].float(),
            num_pairs=counts[0].float(),
            sft_weight=self.sft_weight,
        )

    def _pair_losses(self, logps: Tensor, batch: Batch) -> Tensor:
        chosen, rejected = contrast_sums(logps, batch).chunk(2)
        if self.loss_name == "cpl":
            return cpl_losses(chosen, rejected, beta=self.beta, bias=self.cpl_bias)
        if self.loss_name in ("simpo", "orpo"):
            means = logps.sum(-1) / (batch["targets"] != IGNORE).sum(-1)
            if self.loss_name == "orpo":
                return orpo_losses(*means.chunk(2), beta=self.beta)
            return simpo_losses(*means.chunk(2), beta=self.beta, target_margin=self.target_margin)
        ref_chosen, ref_rejected = batch["ref_logps"].chunk(2)
        terms: dict[str, Any] = {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected, "beta": self.beta}
        if self.loss_name == "dpo":
            return dpo_losses(chosen, rejected, **terms, label_smoothing=self._smoothing(batch))
        if self.needs_sampler:
            terms["sampler_chosen_logps"], terms["sampler_rejected_logps"] = batch["sampler_logps"].chunk(2)
            terms["reference_share"] = self.reference_share
        if self.loss_name in _ON_VALUES:
            terms["value_margins"] = batch["value_margins"]
        return _LOSSES[self.loss_name](chosen, rejected, **terms)

    def _smoothing(self, batch: Batch) -> Tensor | float:
        if self.label_smoothing == "visits":
            return visit_smoothing(*batch["visits"].unbind(1))
        if self.label_smoothing == "agreement":
            return agreement_smoothing(batch["agreement"])
        if self.label_smoothing == "uncertainty":
            return uncertainty_smoothing(batch["uncertainty"])
        return self.label_smoothing


@dataclass(frozen=True, kw_only=True)
class UnpairedObjective:
    """Loss on completions that are good or bad by themselves."""

    loss_name: UnpairedLoss = "kto"
    """Loss of a completion; each is a function of ``losses.py``."""
    beta: float = 0.1
    """Strength of the pull to the reference, > 0."""
    good_weight: float = 1.0
    """Weight of good completions, >= 0."""
    bad_weight: float = 1.0
    """Weight of bad ones, >= 0."""

    def __post_init__(self) -> None:
        rules = {
            "loss_name": (f"one of {', '.join(get_args(UnpairedLoss))}", self.loss_name in get_args(UnpairedLoss)),
            "beta": ("> 0", self.beta > 0),
            "good_weight": (">= 0", self.good_weight >= 0),
            "bad_weight": (">= 0", self.bad_weight >= 0),
        }
        check_ranges(self, rules, where="preference training")

    @property
    def needs_mismatched(self) -> bool:
        """Whether completions behind prompts that are not theirs enter."""
        return self.loss_name == "kto"

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completions."""
        return batch["targets"].new_tensor([len(batch["good"])])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean loss.

        The reference point of KTO is estimated on the completions of this forward pass, as in the paper.
        """
        size = len(batch["good"])
        sums = contrast_sums(completion_logps(model, batch), batch)
        logps, ref_logps, terms = sums[:size], batch["ref_logps"][:size], self._terms()
        if self.loss_name == "oreal":
            losses = oreal_losses(logps, ref_logps, batch["good"], prompt_values=batch["prompt_values"], **terms)
        else:
            point = kto_reference_point(sums[size:], batch["ref_logps"][size:])
            losses = kto_losses(logps, ref_logps, batch["good"], reference_point=point, **terms)
        return losses.sum() / counts[0].float()

    def _terms(self) -> dict[str, float]:
        return {"beta": self.beta, "good_weight": self.good_weight, "bad_weight": self.bad_weight}
