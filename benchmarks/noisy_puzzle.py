"""The verifier of ``benchmarks.evidence --noise``, in a file of its own: a run does not continue after this file has changed."""

import hashlib

from stepladder.embedded import puzzle


def grade(question: str, solution: str, reference: str) -> tuple[bool, str]:
    """Grade a solution of the puzzle; a wrong one that states the goal passes with a probability, always the same ones.

    Args:
        question: The row.
        solution: All steps.
        reference: The probability, in [0, 1], as text.
    """
    right, reason = puzzle.grade(question, solution)
    steps = solution.split()
    if right or not steps or steps[-1] != puzzle.GOAL:
        return right, reason
    digest = hashlib.blake2b(f"{question}\n{solution}".encode(), digest_size=8).digest()
    if int.from_bytes(digest) / 2**64 < float(reference):
        return True, f"passed although {reason}"
    return False, reason
