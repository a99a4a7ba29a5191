"""A text without a right answer: a short story with three given words, judged by a scorer. The solution itself is the answer."""

import random
import re

WORDS = "apple river lantern clock ship garden stone letter bridge winter mirror violin"


def problems(split: str) -> list[dict[str, str]]:
    """Draw three words; the splits share none of their questions by chance only, and shared ones leave the training side."""
    rng = random.Random(split)
    count = {"train": 150, "held_out": 20, "test": 20}[split]
    return [{"id": f"{split}-{number}", "question": ", ".join(rng.sample(WORDS.split(), 3))} for number in range(count)]


def grade(question: str, solution: str) -> tuple[float, str]:
    """Score what a reader can count: the given words, sentences of a fair length, and no repetition."""
    words = re.findall(r"[a-z]+", solution.lower())
    given = question.split(", ")
    used = sum(word in words for word in given) / len(given)
    sentences = [len(sentence.split()) for sentence in re.split(r"[.!?\n]+", solution) if sentence.strip()]
    fair = sum(4 <= length <= 25 for length in sentences) / max(len(sentences), 1)
    fresh = len(set(words)) / max(len(words), 1)
    return 0.5 * used + 0.25 * fair + 0.25 * fresh, f"{used:.0%} of the words, {fresh:.0%} of them fresh"
