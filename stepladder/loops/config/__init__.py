"""The configuration of a run, by section, and how it is loaded."""
