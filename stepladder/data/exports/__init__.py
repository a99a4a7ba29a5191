"""Data sets for other trainers, with a data card."""
