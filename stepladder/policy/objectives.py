"""Objectives of policy training: log-probabilities of completions, from plain sequences or trees, and losses on them."""

from dataclasses import dataclass, field

from torch import Tensor, nn, stack

from stepladder.lm.completions import IGNORE, completion_logps, contrast_sums
from stepladder.lm.training import Batch
from stepladder.policy.preference_losses import (
    agreement_smoothing,
    kto_reference_point,
    preference_loss,
    sft_loss,
    uncertainty_smoothing,
    visit_smoothing,
)
from stepladder.policy.preference_settings import DPO, KTO, PairLoss, Smoothing, UnpairedLoss


class CompletionObjective:
    """Mean negative log-likelihood of the completion tokens."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens."""
        return (batch["targets"] != IGNORE).sum()[None]

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the token mean."""
        return sft_loss(completion_logps(model, batch).sum(-1), counts[0].float())


class WeightedCompletionObjective:
    """Weighted mean negative log-likelihood of the completion tokens.

        L = -sum_i w_i logp_i / sum_i w_i n_i

    with the number n of tokens of a completion. Steps whose weights are a search's distribution after a prefix add up to the cross-entropy
    to it. With weights of 1 it is the loss of ``CompletionObjective``.
    """

    def counts(self, batch: Batch) -> Tensor:
        """Return the weighted number of completion tokens."""
        return ((batch["targets"] != IGNORE).sum(-1) * batch["weights"]).sum()[None]

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the weighted token mean."""
        return sft_loss(completion_logps(model, batch).sum(-1) * batch["weights"], counts[0])


class PairTerms:
    """Inputs of the pair losses: row i of every tensor belongs to pair i."""

    def __init__(self, logps: Tensor, batch: Batch) -> None:
        """Store a batch and the log-probabilities of all its completion tokens, chosen completions first."""
        self._logps, self._batch = logps, batch

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """Log-probability of the chosen and of the rejected completions, in nats, from the first differing token on."""
        return _halves(contrast_sums(self._logps, self._batch))

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Mean log-probability of a token of the chosen and of the rejected completions, in nats."""
        return _halves(self._logps.sum(-1) / (self._batch["targets"] != IGNORE).sum(-1))

    @property
    def reference(self) -> dict[str, Tensor]:
        """The same as ``sums`` under the reference model, as arguments of a loss."""
        chosen, rejected = _halves(self._batch["ref_logps"])
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    @property
    def sampler(self) -> dict[str, Tensor]:
        """The same under the policy that sampled the pairs, as arguments of a loss."""
        chosen, rejected = _halves(self._batch["sampler_logps"])
        return {"sampler_chosen_logps": chosen, "sampler_rejected_logps": rejected}

    @property
    def value_margins(self) -> Tensor:
        """Value of the chosen minus value of the rejected completions."""
        return self._batch["value_margins"]

    def smoothing(self, rule: Smoothing) -> Tensor:
        """Return for every pair the probability that it is flipped, in [0, 0.5]."""
        if rule == "visits":
            return visit_smoothing(*self._batch["visits"].unbind(1))
        if rule == "agreement":
            return agreement_smoothing(self._batch["agreement"])
        return uncertainty_smoothing(self._batch["uncertainty"])


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = values.chunk(2)
    return chosen, rejected


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """Preference loss on sibling steps, with a likelihood term on the chosen steps."""

    settings: PairLoss = field(default_factory=DPO)
    """The loss with its settings."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss uses log-probabilities of the reference."""
        return self.settings.needs_reference

    @property
    def needs_sampler(self) -> bool:
        """Whether the loss uses log-probabilities of the policy that sampled the pairs."""
        return self.settings.needs_sampler

    @property
    def smoothing(self) -> Smoothing | None:
        """The rule that estimates for each pair the probability that it is flipped; None if the loss uses no such estimate."""
        rule = self.settings.label_smoothing if isinstance(self.settings, DPO) else 0.0
        return rule if isinstance(rule, str) else None

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of pairs and of tokens in the preferred completions."""
        targets = batch["targets"]
        num_pairs = len(targets) // 2
        return stack([targets.new_tensor(num_pairs), (targets[:num_pairs] != IGNORE).sum()])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean preference loss and of the likelihood term."""
        logps = completion_logps(model, batch)
        return preference_loss(
            self.settings.losses(PairTerms(logps, batch)),
            full_chosen_logps=logps[: len(logps) // 2].sum(-1),
            num_tokens=counts[1].float(),
            num_pairs=counts[0].float(),
            sft_weight=self.settings.sft_weight,
        )


@dataclass(frozen=True, kw_only=True)
class UnpairedTerms:
    """Inputs of the losses on single completions: entry i of every tensor belongs to completion i."""

    logps: Tensor
    """Log-probabilities, in nats."""
    ref_logps: Tensor
    """The same under the reference model."""
    batch: Batch
    """Their batch."""
    mismatched: tuple[Tensor, Tensor]
    """Log-probabilities of completions after prompts of other problems, under the model and the reference; empty if not needed."""

    @property
    def good(self) -> Tensor:
        """The verdicts."""
        return self.batch["good"]

    @property
    def prompt_values(self) -> Tensor:
        """Value of the node that each completion continues, in [0, 1]."""
        return self.batch["prompt_values"]

    @property
    def reference_point(self) -> Tensor:
        """KTO's reference point, estimated from the completions of this forward pass, as in the paper."""
        return kto_reference_point(*self.mismatched)


@dataclass(frozen=True, kw_only=True)
class UnpairedObjective:
    """Loss on completions that are good or bad by themselves."""

    settings: UnpairedLoss = field(default_factory=KTO)
    """Which loss, with its settings."""

    @property
    def needs_mismatched(self) -> bool:
        """Whether the loss uses completions after prompts of other problems."""
        return self.settings.needs_mismatched

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completions."""
        return batch["targets"].new_tensor([len(batch["good"])])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean loss."""
        size, references = len(batch["good"]), batch["ref_logps"]
        sums = contrast_sums(completion_logps(model, batch), batch)
        terms = UnpairedTerms(logps=sums[:size], ref_logps=references[:size], batch=batch, mismatched=(sums[size:], references[size:]))
        return self.settings.losses(terms).sum() / counts[0].float()
