"""Particles: a generation draws the next one from itself, by weight and with replacement.

A particle is a node of the newest level; equal samples are one node and count as several particles. Those that ended stay in the draw as
they are, the others are extended, each drawn copy by samples of its own.

Axes: b searches, W leaves per tree, n distinct particles, P particles counted with their copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.qvalues import NEUTRAL_VALUE
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.setting_checks import check, check_choice, check_number
from stepladder.mcts.strategies.strategy import NO_LEAF, RunShape, SearchView, Selection, Strategy, reserve_waves, rows_of
from stepladder.mcts.tree import Tree
from stepladder.types import StopReason

RESAMPLE_WEIGHTS = ("odds", "value")
_EPSILON = float(np.finfo(np.float64).eps)
"""Keeps the odds of a value of 0 or 1 finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Particles(Selection):
    """Nodes of the newest level, drawn by weight and with replacement, continue."""

    TYPES: ClassVar[tuple[str, ...]] = ("resample",)
    WAVE_IS_WIDTH: ClassVar[bool] = True

    type: str = "resample"
    """Name of the rule."""
    resample_by: str = "odds"
    """Weight of a particle of value v in resample: ``odds``, (v / (1 - v))^(1 / T), or ``value``, exp(v / T); v is 0.5 where unknown. Those
    that ended stay in the draw."""
    resample_temperature: float = 1.0
    """T of these weights, > 0."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_choice("resample_by", self.resample_by, RESAMPLE_WEIGHTS)
        check_number("resample_temperature", self.resample_temperature, "> 0")

    def samples_at_root(self, num_children: int) -> int:
        """Return as many samples as all particles have together."""
        return self.wave * num_children

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that copies of a particle can differ."""
        check(sampling.temperature > 0, "resample draws equal particles apart again: got temperature 0 -- raise it")

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return ParticleStrategy(self, run)


@dataclass(slots=True)
class Generation:
    """The particles of one search."""

    particles: list[tuple[int, int]]
    """The newest ones: nodes, and how many particles each is."""
    copies: dict[int, int] = field(default_factory=dict)
    """Of each leaf of the wave, the particles that were drawn as its copies."""


class ParticleStrategy(Strategy):
    """Keeps the newest generation of every search."""

    def __init__(self, settings: Particles, run: RunShape) -> None:
        """Begin without any search."""
        self._settings = settings
        self._generations = [self._first() for _ in range(run.num_rows)]

    def _first(self) -> Generation:
        return Generation([(Tree.ROOT, self._settings.wave)])

    def begin(self, search: SearchView) -> None:
        """Begin with all particles at the root."""
        self._generations[search.row] = self._first()

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Draw the next generation of every search."""
        drawn = [self._draw(tree, search, size) for search, size in zip(searches, sizes.tolist(), strict=True)]
        waves = np.full((len(searches), max(1, *map(len, drawn))), NO_LEAF, np.int64)
        for wave, leaves in zip(waves, drawn, strict=True):
            wave[: len(leaves)] = leaves
        reserve_waves(tree, rows_of(searches), waves)
        return waves

    def _draw(self, tree: Tree, search: SearchView, most: int) -> list[int]:
        """Draw the next generation and return its leaves, at most ``most`` particles, in the order of their nodes."""
        generation = self._generations[search.row]
        if generation.particles == [(Tree.ROOT, self._settings.wave)]:
            generation.particles, generation.copies = [], {Tree.ROOT: self._settings.wave}
            return [Tree.ROOT]
        nodes, numbers = map(np.array, zip(*generation.particles, strict=True))
        weights = particle_weights(
            tree.raw_value[search.row, nodes].astype(np.float64),
            numbers,
            rule=self._settings.resample_by,
            temperature=float(self._settings.resample_temperature),
        )
        rng = np.random.default_rng(search.seed_of("resample", search.num_simulations))
        drawn = draw_copies(weights, rng.random(self._settings.wave)).tolist()
        generation.particles, generation.copies = [], {}
        for node, number in zip(nodes.tolist(), drawn, strict=True):
            if number and search.table.stop_reasons[node] != StopReason.STEP:
                # It ended: it is kept for the next draw.
                generation.particles.append((node, number))
            elif number and most > 0:
                generation.copies[node] = min(number, most)
                most -= number
        return list(generation.copies)

    def samples_after(self, search: SearchView, leaves: list[int], numbers: list[int]) -> list[int]:
        """Sample for every copy; the root's samples are for all particles already."""
        if leaves == [Tree.ROOT]:
            return numbers
        copies = self._generations[search.row].copies
        return [number * copies[leaf] for number, leaf in zip(numbers, leaves, strict=True)]

    def end_waves(self, tree: Tree, searches: Sequence[SearchView]) -> None:
        """Add the new nodes to those that ended earlier."""
        for search in searches:
            particles = self._generations[search.row].particles
            for expansion in search.wave:
                particles += enumerate(expansion.counts, start=expansion.first)


def particle_weights(
    values: Float[np.ndarray, "n"], copies: Int[np.ndarray, "n"], *, rule: str, temperature: float
) -> Float[np.ndarray, "n"]:
    """Return the probability of drawing each particle.

        odds: w_i ~ copies_i * (v_i / (1 - v_i))^(1 / T), the softmax over logit(v_i) / T
        value: w_i ~ copies_i * exp(v_i / T)

    Args:
        values: Scores in [0, 1]; NaN counts as 0.5.
        copies: Number of particles that each entry represents, >= 1.
        rule: One of ``RESAMPLE_WEIGHTS``.
        temperature: T, > 0.

    Returns:
        Probabilities; they sum to 1.

    Source: odds: Puri et al. 2025, "A probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo
    methods", and the released ``particle_gibbs.py``, a softmax over the scores' logits at temperature 1; value: Han et al. 2024, "Value
    augmented sampling for language model alignment and personalization", the policy tilted by exp(beta * value), beta = 1 / T.
    """
    known = np.where(np.isnan(values), NEUTRAL_VALUE, values)
    if rule == "odds":
        clipped = known.clip(_EPSILON, 1 - _EPSILON)
        known = np.log(clipped) - np.log1p(-clipped)
    weights = copies * np.exp((known - known.max()) / temperature)
    return weights / weights.sum()


def draw_copies(weights: Float[np.ndarray, "n"], uniforms: Float[np.ndarray, "P"]) -> Int[np.ndarray, "n"]:
    """Return how often each particle is drawn: multinomial resampling by inversion.

    A uniform number u draws the first particle whose cumulative weight exceeds u.

    Args:
        weights: Probabilities; they sum to 1.
        uniforms: One number in [0, 1) per draw.

    Source: Gordon et al. 1993, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation"; Puri et al. 2025 draw so, too.
    """
    drawn = np.searchsorted(np.cumsum(weights), uniforms, side="right")
    # The cumulative sum may end just below 1.
    return np.bincount(drawn.clip(max=len(weights) - 1), minlength=len(weights))
