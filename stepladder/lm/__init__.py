"""Language-model parts that policies and step scorers share: loading, key/value caches, sampling, token text, and training."""
