"""The command line."""

import sys


def main() -> None:
    """Run the command line; a broken installation ends in one sentence, too."""
    try:
        from stepladder.cli import app

        app.main()
    except ImportError as error:
        package = (error.name or "stepladder").partition(".")[0]
        print(f"error: the package {package!r} must be importable: {error} -- install it again", file=sys.stderr)
        sys.exit(1)


__all__ = ["main"]
