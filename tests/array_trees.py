"""Nodes of a tree of arrays as plain rows."""

import numpy as np

from stepladder.mcts.tree import NewNodes


def nodes(rows, parents, slots, depths, *, raw=0.5, ended=(), visited=True):
    """Return new nodes, of which those at the positions ``ended`` are terminals."""
    count = len(rows)
    terminal = np.isin(np.arange(count), ended)
    return NewNodes(
        rows=np.array(rows),
        parents=np.array(parents),
        slots=np.array(slots),
        depths=np.array(depths),
        priors=np.full(count, 0.5, np.float32),
        rewards=np.zeros(count, np.float32),
        raw_values=np.broadcast_to(np.float32(raw), count).copy(),
        visited=np.full(count, visited),
        selectable=~terminal,
        terminal=terminal,
        truncated=np.zeros(count, bool),
    )
