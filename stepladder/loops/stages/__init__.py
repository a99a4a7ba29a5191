"""The stages of a round, each with its plan and its job."""
