"""Settings, losses and specs of trainings, from the configuration."""

from typing import Any

from stepladder.loops.config.run import Config
from stepladder.loops.config.training import PreferenceConfig, PRMConfig, TrainConfig


def train_settings(section: TrainConfig, *, seed: int, config: Config) -> Any:
    """Return the plain training settings of a section."""
    from stepladder.lm.training import LoraSettings, TrainSettings

    plain = {name: getattr(section, name) for name in TrainConfig.model_fields if name != "lora"}
    lora = LoraSettings(**section.lora.model_dump()) if section.lora else None
    return TrainSettings(**plain, lora=lora, seed=seed, device=config.policy.device, report_to=config.training.report_to)


def build_preference_objective(section: PreferenceConfig) -> Any:
    """Return the loss of preference training: a ``PreferenceObjective``, or an ``UnpairedObjective`` where the loss takes no pairs."""
    from stepladder.policy.objectives import PreferenceObjective, UnpairedObjective

    paired = ("label_smoothing", "target_margin", "cpl_bias", "sft_weight", "reference_share")
    kind, names = (UnpairedObjective, ("good_weight", "bad_weight")) if section.unpaired else (PreferenceObjective, paired)
    return kind(loss_name=section.loss, beta=section.beta, **{name: getattr(section, name) for name in names})  # pyright: ignore


def new_prm_spec(section: PRMConfig) -> Any:
    """Return how a PRM that is trained is read; what it is trained on is filled in by the training."""
    from stepladder.prm.specs import PRMSpec

    if section.loss.startswith("implicit"):
        return PRMSpec(family="implicit", beta=section.beta, accumulate=True)
    if section.loss in ("hl-gauss", "two-hot"):
        return PRMSpec(bins=section.bins, transform="identity")
    return PRMSpec(family="value-head" if section.head == "value" else "two-class")
