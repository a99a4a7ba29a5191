"""The self-evolution loop: configuration, rounds, worker processes, and solving with what a run has trained."""
