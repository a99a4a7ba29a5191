"""Metrics of answers and of step scores."""
