"""Selection rules, one module each: the settings that a method names, and the strategy that a run makes of them.

To add one, write a module with a ``Selection`` and its ``Strategy`` and name it in a row of ``stepladder.mcts.presets``, as
``row("my-method", ..., selection=MySelection, my_setting=3)``. ``strategy`` has the protocol; ``frontier`` is a short example. The row's
settings, the documentation and ``--option selection=my-type`` follow from the row.
"""

from stepladder.mcts.strategies.adaptive import Adaptive
from stepladder.mcts.strategies.beam import Beam
from stepladder.mcts.strategies.descent import Descent
from stepladder.mcts.strategies.frontier import Frontier
from stepladder.mcts.strategies.particles import Particles
from stepladder.mcts.strategies.restarts import Restarts
from stepladder.mcts.strategies.samples import Samples
from stepladder.mcts.strategies.strategy import Selection

SELECTIONS: tuple[type[Selection], ...] = (Descent, Adaptive, Frontier, Beam, Particles, Samples, Restarts)
"""The rules that a row can name by type."""
