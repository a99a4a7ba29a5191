"""Figures of answers and of step scores."""
