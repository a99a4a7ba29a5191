"""Process reward models: specs, step scores, losses and training."""
