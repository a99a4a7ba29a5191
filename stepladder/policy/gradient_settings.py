"""The losses of policy gradients by name, each with its own settings. Nothing here loads a model library.

They differ in the bounds of the ratio, in whether it is one of tokens or of sequences, and in the mean that is taken over the tokens of an
update. To add one, write its class here and add it to ``GradientLoss``. That line also adds it to the configuration and docs/training.md.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Gt, Lt

from stepladder.errors import check
from stepladder.settings import Count, NonNegative, Positive, check_bounds

Mean = Literal["tokens", "sequences", "constant"]
"""Mean over an update: over all its tokens, over sequences of their means over tokens, or sums of sequences over a constant length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClippedLoss:
    """A clipped loss on the ratio of the policy to the one that sampled."""

    mean: ClassVar[Mean]
    """How the losses of tokens are put together."""
    by_sequence: ClassVar[bool] = False
    """Whether a sequence has one ratio."""

    clip_low: Annotated[float, Gt(0), Lt(1)] = 0.2
    """How far a ratio may fall below 1 before it has no gradient, in (0, 1)."""
    clip_high: Positive = 0.2
    """How far it may rise above 1, > 0."""
    dual_clip: NonNegative = 0.0
    """Bound on the loss of a token with a negative advantage, in multiples of the advantage, > 1 + ``clip_high``; 0 has none."""
    kl_weight: NonNegative = 0.0
    """Weight of the divergence from the reference model, >= 0; 0 needs no reference."""
    truncation: NonNegative = 0.0
    """Largest weight of a token that an older policy or an engine with other numerics sampled, >= 0. Ratios are then those to the policy
    before the training, which is run once more over the rows. 0 has no such weights, and takes the ratio to the sampler as it is."""

    def __post_init__(self) -> None:
        check_bounds(self, where="gradient training")
        check(
            not self.dual_clip or self.dual_clip > 1 + self.clip_high,
            f"gradient training: dual_clip must be above 1 + clip_high = {1 + self.clip_high:g}: got {self.dual_clip} -- raise it",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPO(_ClippedLoss):
    """Group relative policy optimisation: every solution counts the same, whatever its length.

        L = 1/S sum_i 1/n_i sum_t (clipped loss + kl_weight k)

    Source: Shao et al. 2024, "DeepSeekMath: pushing the limits of mathematical reasoning in open language models", equation 3, beta 0.04.
    """

    mean: ClassVar[Mean] = "sequences"
    type: Literal["grpo"] = "grpo"
    """Name of the loss."""
    kl_weight: NonNegative = 0.04
    """Weight of the divergence from the reference model, >= 0; 0 needs no reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DAPO(_ClippedLoss):
    """Decoupled clip and dynamic sampling: every token counts the same, and unlikely tokens may rise further.

        L = sum_i sum_t (clipped loss) / sum_i n_i

    Source: Yu et al. 2025, "DAPO: an open-source LLM reinforcement learning system at scale", equation 8, clip 0.2 and 0.28. Its dynamic
        sampling is ``skip_even`` of the rule of advantages, without drawing other problems instead; we omit the penalty on long solutions.
    """

    mean: ClassVar[Mean] = "tokens"
    type: Literal["dapo"] = "dapo"
    """Name of the loss."""
    clip_high: Positive = 0.28
    """How far a ratio may rise above 1, > 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrGRPO(_ClippedLoss):
    """GRPO without its bias to long wrong solutions: sums over tokens, divided by a constant.

        L = 1/S sum_i 1/length sum_t (clipped loss)

    Source: Liu et al. 2025, "Understanding R1-Zero-like training: a critical perspective", section 3.2; advantages are not divided by a
        standard deviation either (``labels.advantages.scale = false``).
    """

    mean: ClassVar[Mean] = "constant"
    type: Literal["dr-grpo"] = "dr-grpo"
    """Name of the loss."""
    length: Count = 1024
    """The constant, such as the largest number of tokens of a solution, >= 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GSPO(_ClippedLoss):
    """Group sequence policy optimisation: one ratio per solution, the geometric mean of those of its tokens.

        L = 1/S sum_i 1/n_i sum_t (clipped loss with rho_i = exp(mean_t log rho_t))

    Source: Zheng et al. 2025, "Group sequence policy optimization", equations 5, 7 and 14, clip 3e-4 and 4e-4.
    """

    mean: ClassVar[Mean] = "sequences"
    by_sequence: ClassVar[bool] = True
    type: Literal["gspo"] = "gspo"
    """Name of the loss."""
    clip_low: Annotated[float, Gt(0), Lt(1)] = 3e-4
    """How far a ratio may fall below 1, in (0, 1)."""
    clip_high: Positive = 4e-4
    """How far it may rise above 1, > 0."""


GradientLoss = GRPO | DAPO | DrGRPO | GSPO
"""Losses of policy gradients."""
GRADIENT_LOSSES: dict[str, type[GradientLoss]] = {loss().type: loss for loss in get_args(GradientLoss)}
"""The losses by name."""
