"""A PRM whose scores have nothing to do with a task: what a search is worth without the knowledge of its PRM."""

from pathlib import Path
from typing import cast

import torch

from stepladder.files import atomic_directory
from stepladder.lm.loading import load_tokenizer
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.config.run import Config
from stepladder.prm.new_models import initialise_prm


def save_random_prm(place: Path, *, config: Config, policy: str, seed: int) -> None:
    """Write a policy with a wide random head in the place of its own, unless it is there.

    Args:
        place: Directory of the PRM.
        config: Settings of the run that it scores in.
        policy: The policy's directory or hub id.
        seed: Seed of the head, >= 0.
    """
    if place.exists():
        return
    model, spec = initialise_prm(policy, renderer_hash=build_renderer(config, policy).hash, seed=seed, device="cpu")
    # The head starts near zero, where all scores are alike; wider, it tells steps apart, at random.
    head = cast(torch.nn.Linear, model.get_submodule("score"))
    head.weight.data *= 100.0
    with atomic_directory(place) as temporary:
        model.save_pretrained(temporary)
        load_tokenizer(policy).save_pretrained(temporary)
        spec.save(temporary)
