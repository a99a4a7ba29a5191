"""Checks of single steps: their arithmetic, and their code in a sandbox."""
