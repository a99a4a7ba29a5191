"""The command line."""

import gc
import sys

from stepladder.terminal import echo


def main() -> None:
    """Run the command line; a broken installation ends in one sentence, too."""
    # PyTorch and transformers make half a million objects when they are imported; Python's default collector walks them ten times.
    gc.set_threshold(50_000)
    try:
        from stepladder.cli import app

        app.main()
    except ImportError as error:
        package = (error.name or "stepladder").partition(".")[0]
        echo(f"error: the package {package!r} must be importable: {error} -- install it again", err=True)
        sys.exit(1)


__all__ = ["main"]
