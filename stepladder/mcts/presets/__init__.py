"""The tables of named methods, by kind.

To add one, add a row: its description, its settings that differ from the defaults, its source with the published budget, and where it
differs from the source. Everything else (help, documentation, tests against the pointer twin) follows from the row. A row names a selection
rule by its type, or a new one by its class (``stepladder.mcts.strategies`` says how to write one).

Scores and values are in [0, 1] here. A system whose values are in [-1, 1] keeps its order of children when its values become (1 + v) / 2
and its exploration constant is halved; its rows say so. Systems that question the policy to evaluate steps get the PRM's score, or the
policy judges its own steps (``--prm self``). A row names the file or section that its figures were checked against. If a source leaves a
point open, or it could not be checked, the choice is ours, and the row says so.
"""
