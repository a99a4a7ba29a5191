"""Language-model plumbing that policies and step scorers share: loading, caches of keys and values, sampling, token text."""
