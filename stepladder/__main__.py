"""``python -m stepladder``: the command line without its script."""

from stepladder.cli import main

if __name__ == "__main__":
    main()
