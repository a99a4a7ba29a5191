"""Obvious readings of saved tiny models: hidden states, tensors and logits."""

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Model


def last_hidden(directory, ids):
    """Return the last hidden states of a Qwen2 body."""
    with torch.no_grad():
        return Qwen2Model.from_pretrained(directory)(torch.tensor([ids])).last_hidden_state[0]


def checkpoint(directory):
    """Return the tensors of a saved model."""
    return load_file(directory / "model.safetensors")


def lm_logits(directory, ids):
    """Return the logits of a saved language model."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory)(torch.tensor([ids])).logits[0]
