"""Tests on one real pretrained language model, which ``make test-real`` gets from the package index."""
