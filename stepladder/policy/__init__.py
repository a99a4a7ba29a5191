"""Policies: prompts, backends that sample steps, preference losses and training."""
