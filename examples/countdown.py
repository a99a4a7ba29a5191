"""Countdown: reach the target with the given numbers, each used at most once. An exact verifier, no answer key."""

import ast
import operator
import random
import re
from collections import Counter

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def problems(split: str) -> list[dict[str, str]]:
    """Draw problems that have a solution."""
    rng, rows = random.Random(split), []
    for number in range({"train": 2000, "held_out": 200, "test": 200}[split]):
        a, b, c = (rng.randint(1, 12) for _ in range(3))
        target = eval(f"{a} {rng.choice('+-*')} {b} {rng.choice('+-*')} {c}")
        rows.append({"id": f"{split}-{number}", "question": f"make {target} from {a}, {b}, {c}"})
    return rows


def value(node: ast.AST, used: Counter[int]) -> int:
    """Evaluate an expression of whole numbers, and note the numbers that it uses."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATIONS[type(op)](value(left, used), value(right, used))
        case ast.Constant(value=int() as number):
            used[number] += 1
            return number
    raise ValueError("only numbers, +, - and * are allowed")


def grade(question: str, answer: str) -> tuple[bool, str]:
    """Compare the value of the answer with the target, and its numbers with those given."""
    target, *given = map(int, re.findall(r"-?\d+", question))
    used = Counter[int]()
    result = value(ast.parse(answer, mode="eval").body, used)
    if used - Counter(given):
        return False, "another number"
    return result == target, f"it is {result}"


grade.answer_key = lambda answer: ast.unparse(ast.parse(answer, mode="eval"))
