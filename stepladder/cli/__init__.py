"""The command line."""

from stepladder.cli.app import main

__all__ = ["main"]
