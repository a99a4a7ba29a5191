"""Properties of rule ``math`` over generated answers: numbers in many spellings, lists in any order, nested notation."""

import random
from fractions import Fraction

import pytest

from stepladder.data.grading.answers import answer_key, math_match
from stepladder.data.grading.forms import is_expression
from stepladder.data.grading.normal import normal_form
from stepladder.data.grading.numeric import same_value
from stepladder.data.grading.reader import read


def spellings(value: Fraction) -> list[str]:
    """The same number, written in at least ten ways."""
    sign = "-" if value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    texts = [
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\dfrac{{{sign}{top}}}{{{bottom}}}",
        f"${sign}\\tfrac{{{top}}}{{{bottom}}}$",
        f"\\boxed{{{sign}\\frac{{{top}}}{{{bottom}}}}}",
        f"\\left({sign}\\frac{{{2 * top}}}{{{2 * bottom}}}\\right)",
        f"**{sign}{top} / {bottom}**",
        f"{sign}{top} \\div {bottom}",
        f"{sign}{top} \\cdot {bottom}^{{-1}}",
        f"\\text{{{sign}{top}/{bottom}}}",
        f"x = {sign}{top}/{bottom}",
        f"{sign}{top:,}/{bottom}",
        sign + _decimal(top, bottom),
    ]
    if top > bottom > 1:
        texts.append(f"{sign}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}")
        texts.append(f"{sign}{top // bottom} {top % bottom}/{bottom}")
    return texts


def _decimal(top: int, bottom: int) -> str:
    """Long division, the period under a bar."""
    whole, rest = divmod(top, bottom)
    digits, seen = "", dict[int, int]()
    while rest and rest not in seen:
        seen[rest] = len(digits)
        rest *= 10
        digits += str(rest // bottom)
        rest %= bottom
    if not rest:
        return f"{whole}.{digits}" if digits else str(whole)
    at = seen[rest]
    return f"{whole}.{digits[:at]}\\overline{{{digits[at:]}}}"


@pytest.mark.parametrize("seed", range(20))
def test_a_rational_equals_itself_in_every_spelling_and_never_its_neighbours(seed):
    """Ten ways to write one number, and the numbers next to it."""
    draw = random.Random(seed)
    value = Fraction(draw.randint(-5000, 5000), draw.randint(1, 97))
    reference = str(value)
    neighbours = [value + Fraction(1, 10**k) for k in (0, 3, 12, 40)] + [value - Fraction(1, 7), -value or Fraction(1)]
    for text in spellings(value):
        assert math_match(text, reference) is True, text
        for other in neighbours:
            assert math_match(text, str(other)) is False, (text, other)
    keys = {answer_key(text, "math") for text in spellings(value) if not text.startswith("x")}
    assert keys == {str(value)}


def test_a_thousand_pairs_of_different_numbers_are_never_equal():
    """Huge, tiny and close ones included."""
    draw = random.Random(0)
    for _ in range(1000):
        exponent = draw.choice([-2000, -300, -40, 0, 40, 300, 2000])
        left = f"{draw.randint(1, 10**12)} \\cdot 10^{{{exponent}}}"
        step = draw.choice(["+ 10^{-1900}", "- 2^{-500}", "\\cdot (1 + 10^{-1500})", "+ 1"])
        assert math_match(f"({left}) {step}", left) is False
        assert math_match(left, left) is True


@pytest.mark.parametrize("seed", range(10))
def test_lists_and_sets_have_no_order_and_tuples_have_one(seed):
    """Values without brackets and sets are permuted freely; points and lists of words are not."""
    draw = random.Random(seed)
    values = draw.sample(["3", "-1/2", "\\sqrt{2}", "\\pi", "2+i", "x^2", "0.25"], 4)
    shuffled = values[1:] + values[:1]
    assert math_match(", ".join(shuffled), ", ".join(values)) is True
    assert math_match(f"\\{{{', '.join(shuffled)}\\}}", f"\\{{{', '.join(values)}\\}}") is True
    assert answer_key(", ".join(shuffled), "math") == answer_key(", ".join(values), "math")
    assert math_match(f"({', '.join(shuffled)})", f"({', '.join(values)})") is False
    assert math_match(", ".join(values[:3]), ", ".join(values)) is False
    assert math_match("B, C, A", "A, B, C") is False


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_wrappers_may_be_nested(depth):
    """Boxes, dollars and text commands around an answer change nothing."""
    text = "\\frac{1}{2}"
    for level in range(depth):
        text = [f"\\boxed{{{text}}}", f"\\text{{{text}}}", f"$\\displaystyle {text}$"][level % 3]
    assert math_match(text, "0.5") is True
    assert math_match(text, "0.25") is False


@pytest.mark.parametrize("seed", range(15))
def test_normal_form_agrees_with_numbers(seed):
    """Two polynomials in roots and letters have one normal form exactly if they agree at random points."""
    draw = random.Random(seed)
    atoms = ["x", "y", "2", "\\frac{1}{3}", "\\sqrt{2}", "\\sqrt{6}", "\\pi"]

    def expression(depth: int) -> str:
        if depth == 0:
            return draw.choice(atoms)
        left, right = expression(depth - 1), expression(depth - 1)
        return draw.choice([f"({left}+{right})", f"({left}-{right})", f"{left} \\cdot {right}", f"({left})^2"])

    texts = [expression(3) for _ in range(4)]
    texts += [
        texts[0] + "+" + texts[1],
        texts[1] + "+" + texts[0],
        f"({texts[2]}) \\cdot ({texts[3]})",
        f"({texts[3]}) \\cdot ({texts[2]})",
    ]
    forms = [read(text) for text in texts]
    for left in forms:
        for right in forms:
            one, other = normal_form(left), normal_form(right)
            assert one is not None and other is not None
            assert (one.terms == other.terms) == same_value(left, right)


@pytest.mark.parametrize("seed", range(20))
def test_quick_verdicts_agree_with_numbers(seed):
    """Whatever is decided without algebra is what the digits say, for roots, logarithms and functions of any arguments."""
    draw = random.Random(seed)

    def expression(depth: int) -> str:
        if depth == 0:
            return draw.choice(["x", "2", "3", "0", "1", "\\pi", "e", "i", "0.5", "\\frac{1}{3}", "12"])
        left, right = expression(depth - 1), expression(depth - 1)
        forms = [f"({left}+{right})", f"({left}-{right})", f"({left})({right})", f"\\frac{{{left}}}{{{right}}}", f"({left})^{{{right}}}"]
        forms += [f"\\sqrt{{{left}}}", f"\\sqrt[3]{{{left}}}", f"\\ln({left})", f"|{left}|", f"\\lfloor {left} \\rfloor", f"{left}\\%"]
        return draw.choice(forms)

    for _ in range(60):
        one, other = expression(2), expression(1)
        left, right = read(one), read(other)
        quick = math_match(one, other)
        if quick is not None and is_expression(left) and is_expression(right):
            assert same_value(left, right) in (quick, None), (one, other)
