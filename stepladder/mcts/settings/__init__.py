"""The settings of a search method, grouped by what they decide. Each record declares and checks its settings.

A setting has one name, in files, on the command line and in Python. No two records share a name for different things, so a user names a
setting alone (``num_children=8``), and ``stepladder.mcts.search_method`` puts it into its record.

A record that may be missing, as ``Rollouts``, has two class attributes: ``SWITCH`` names its setting that switches it on, and ``OFF`` is
the value of that setting without the record.
"""
