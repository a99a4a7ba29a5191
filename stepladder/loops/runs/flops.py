"""Floating-point operations of a round, estimated from the number of parameters and of tokens."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from pydantic import with_config

from stepladder.files import reading
from stepladder.lm.flops import ModelFlops
from stepladder.loops.runs.json_records import CLOSED

FORWARD, TRAINING = 2, 6
"""Operations per parameter and token: of a forward pass, and of a forward and a backward pass."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class FlopFigures:
    """Floating-point operations of the policy in a round.

    Source: Kaplan et al. 2020, "Scaling laws for neural language models": 2 N per token forward, 6 N with the backward pass. N is here the
        number of all parameters, those of the embedding and of all experts included; attention over long contexts is left out.
    """

    parameters: int
    """Parameters of the policy."""
    search_unique: float | None
    """Operations of the search if every token of its trees were forwarded once; None without a search."""
    search_forwarded: float | None
    """Operations of the search as it was; None if the backend does not tell."""
    training: float
    """Operations of the policy's trainings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFlops:
    """Costs of the models of searches."""

    policy: ModelFlops | None
    """Those of the policy; None if its shape is not known."""
    prm: ModelFlops | None
    """Those of the PRM's body; None if its shape is not known, or it is an ensemble."""

    def of(self, *, forwarded: int | None, sampled: int, prm_forwarded: int | None) -> float | None:
        """Return the operations of searches; None if a model or a count is not known.

            policy: 2 body forwarded + 2 head sampled
            PRM: 2 body prm_forwarded

        Attention over the context is left out, because backends do not count it, and so are the few outputs of the PRM.

        Args:
            forwarded: Tokens that went through the policy's model.
            sampled: Tokens sampled: only these, and not the tokens of prefixes, need the policy's head.
            prm_forwarded: Tokens that went through the PRM; 0 without one.
        """
        if self.policy is None or forwarded is None or prm_forwarded is None:
            return None
        if self.prm is None:
            return None if prm_forwarded else self.policy.forward(forwarded, read=sampled)
        return self.policy.forward(forwarded, read=sampled) + self.prm.forward(prm_forwarded, read=0)


def count_parameters(model: Path) -> int | None:
    """Return the number of parameters of a model directory, read from the headers of its weights; None if it has no safetensors.

    Raises:
        CheckpointError: If a file is damaged.
    """
    files = sorted(model.glob("*.safetensors"))
    with reading(model, what="a model with readable weights", remedy="restore it"):
        return sum(map(_parameters, files)) if files else None


def _parameters(path: Path) -> int:
    # The format begins with the length of its header, eight bytes little-endian.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
