"""The verifier of ``benchmarks.glyph_variants``, in a file of its own: a run does not continue after this file has changed."""

from stepladder.embedded.glyphs import LIST_LENGTH


def grade(answer: str, reference: str) -> bool:
    """Say whether an answer is a list that ends like its key, which is exact if the key has all digits."""
    return len(answer) == LIST_LENGTH and answer.endswith(reference)
