"""Settings, losses and specs of trainings, from the configuration."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stepladder.lm.settings import StageSettings, TrainSettings
from stepladder.loops.config.run import Config
from stepladder.loops.config.training import BinLoss, GradientConfig, HeadLoss, HeadRead, ImplicitLoss, PreferenceConfig, PRMLoss

if TYPE_CHECKING:
    from stepladder.policy.gradient import GradientObjective
    from stepladder.prm.specs import PRMSpec


def train_settings(stage: StageSettings, *, seed: int, config: Config) -> TrainSettings:
    """Return the settings of a training: those of its stage, and those of the run."""
    own = {each.name: getattr(stage, each.name) for each in fields(StageSettings)}
    return TrainSettings(**own, seed=seed, device=config.policy.device, report_to=config.training.report_to)


def build_preference_objective(section: PreferenceConfig) -> Any:
    """Return the loss of preference training: a ``PreferenceObjective``, or an ``UnpairedObjective`` if the loss takes no pairs."""
    from stepladder.policy.objectives import PreferenceObjective, UnpairedObjective

    return (UnpairedObjective if section.unpaired else PreferenceObjective)(settings=section.loss)  # pyright: ignore[reportArgumentType]


def build_gradient_objective(section: GradientConfig) -> "GradientObjective":
    """Return the loss of policy gradients."""
    from stepladder.policy.gradient import GradientObjective

    return GradientObjective(settings=section.loss)


def new_prm_spec(loss: PRMLoss, *, target: str, body: str | None = None, read: HeadRead = "before-end") -> "PRMSpec":
    """Return the spec of a PRM to train. The training adds the facts about its data.

    Args:
        loss: Its loss.
        target: Its target.
        body: The policy whose body a probe reads, as its spec names it; None for a PRM with a body of its own.
        read: Token of a step at which a probe is read.
    """
    from stepladder.prm.specs import PRMSpec

    if isinstance(loss, ImplicitLoss):
        # Pairs of steps teach the value of one step, outcomes that of a path.
        return PRMSpec(family="implicit", beta=loss.beta, accumulate=target != "step-pairs")
    bins, transform = (loss.bins, "identity") if isinstance(loss, BinLoss) else (1, "sigmoid")
    if body is not None:
        return PRMSpec(family="probe", body=body, read=read, bins=bins, transform=transform)
    return PRMSpec(
        family="two-class" if isinstance(loss, HeadLoss) and loss.head == "two-class" else "value-head", bins=bins, transform=transform
    )
