"""Search-guided reasoning self-improvement: search, process reward models, and the loop that retrains both."""

__version__ = "0.1.0"
