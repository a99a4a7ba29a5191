r"""Answers read out of ``\boxed{}``: balanced, the last one, whole, and in linear time."""

import pytest

from stepladder.boxes import boxed_answer, boxes
from stepladder.data.grading.answers import math_match, unreadable_reason


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is $\\boxed{4}$, since $2^{2}=4$.", "4"),
        ("First \\boxed{12}, no: \\boxed{13}.", "13"),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\boxed{\\begin{pmatrix} 1 \\\\ 2\n\\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2\n\\end{pmatrix}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{[0, 1)}", "[0, 1)"),
        ("\\boxed\n{5}", "5"),
        ("\\boxed {5}", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed 7", "7"),
        ("\\boxed7.", "7"),
        ("\\boxed -3.5, as said", "-3.5"),
        ("\\boxed \\frac{1}{2} holds", "\\frac{1}{2}"),
        ("$\\boxed\\pi$", "\\pi"),
        ("\\boxed{\\boxed{5}}", "\\boxed{5}"),
        ("\\boxed{1}, \\boxed{2}", "1, 2"),
        ("$\\boxed{1}$ and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1} \\text{ or } \\boxed{2}", "1, 2"),
        ("\\boxed{12}\n\\boxed{13}", "13"),
        ("\\boxed{5} and \\boxed{5}", "5"),
        ("\\boxed{3} apples and \\boxed{4}", "4"),
        ("\\boxed{3", None),
        ("\\boxed{12} and \\boxed{13", None),
        ("\\boxed{12} and \\boxed{}", None),
        ("\\boxed{ }", None),
        ("\\boxed{\\phantom{00}}", None),
        ("\\boxed{\\text{ }}", None),
        ("\\boxed{\\,\\quad~}", None),
        ("\\boxed{___}", None),
        ("\\boxed{?}", None),
        ("\\boxed{\\ldots}", None),
        ("\\boxedsomething{5}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    """An open, empty or blank last box is none; boxes side by side are one answer."""
    assert boxed_answer(text) == answer


def test_boxes_are_found_in_order():
    """Nested boxes are part of the outer one, and an open one ends the list."""
    found = [(box.content, text[box.start : box.end]) for text in ["a \\boxed{1} \\fbox{\\boxed{2}} \\boxed{3"] for box in boxes(text)]
    assert found == [("1", "\\boxed{1}"), ("\\boxed{2}", "\\fbox{\\boxed{2}}"), (None, "\\boxed{3")]


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed{1}, ", "$", "{", "}", "\\boxed", "\\boxed{1} and ", "\\boxed{ ", "\\fbox\\boxed", "\\"]
)
def test_long_texts_are_read_in_linear_time(piece):
    """A megabyte of anything is read; the test ends, so nothing is quadratic."""
    boxed_answer(piece * (10**6 // len(piece)))
    boxed_answer("\\boxed{" + piece * (10**6 // len(piece)) + "}")


SOLUTIONS = [
    ("Adding gives $2x = 6$, so $x = \\boxed{3}$, which satisfies $x^{2} - 9 = 0$.", "3"),
    ("It is \\[\\boxed{\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}}.\\]", "\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}"),
    ("So \\boxed{(-\\infty, -2) \\cup \\left( \\frac{1}{3}, 5 \\right]}.", "(-\\infty, -2) \\cup \\left( \\frac{1}{3}, 5 \\right]"),
    ("The total is $\\$18.90 = \\boxed{\\$18.90}$ {sic}.", "\\$18.90"),
    ("He pays $\\boxed{\\$36,\\!348}$ in {all}.", "\\$36,\\!348"),
    ("Thus $N = \\boxed{4210_{5}}$.", "4210_{5}"),
    ("It lies in the third row: $\\boxed{\\text{(C)}}$.", "\\text{(C)}"),
    ("The oldest is $\\boxed{\\text{Evelyn}}$.", "\\text{Evelyn}"),
    ("The roots are $\\boxed{1 \\pm \\sqrt{19}}$.", "1 \\pm \\sqrt{19}"),
    ("All of $\\boxed{\\{1\\pm\\sqrt{5},-2\\}}$ work.", "\\{1\\pm\\sqrt{5},-2\\}"),
    ("The area is $\\boxed{864 \\mbox{ inches}^2}$.", "864 \\mbox{ inches}^2"),
    ("The angle is $\\boxed{\\frac{270}{7}\\text{ degrees}}$.", "\\frac{270}{7}\\text{ degrees}"),
    ("The product is $\\boxed{6 - 5i}$; check $|6-5i|^{2} = 61$.", "6 - 5i"),
    ("It is $3$, $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ("That is {about} $\\boxed{10\\%}$.", "10\\%"),
    ("So the pairs are $\\boxed{(1, 2), (3, 4)}$.", "(1, 2), (3, 4)"),
    ("The line is $\\boxed{y = 2x + 3}$.", "y = 2x + 3"),
    ("We get $\\boxed{x^3+3x-6}$ after {long} division.", "x^3+3x-6"),
    ("The sum is $\\boxed{1,\\!000,\\!000}$.", "1,\\!000,\\!000"),
    ("The order is $\\boxed{\\cot x}$, a {function}.", "\\cot x"),
    ("It is $\\boxed{11\\sqrt2}$.", "11\\sqrt2"),
    ("The answer is \\boxed{\\frac{\\sqrt{3}}{3}}.", "\\frac{\\sqrt{3}}{3}"),
    ("It ends on $\\boxed{\\text{June 20}}$.", "\\text{June 20}"),
    ("The sides are $\\boxed{3, 5, 7}$.", "3, 5, 7"),
    ("It is $.\\overline{27} = \\boxed{\\frac{3}{11}}$", "\\frac{3}{11}"),
    ("It is $\\boxed{\\begin{bmatrix} 0 & 1 \\\\[2pt] 2 & 3 \\end{bmatrix}}$.", "\\begin{bmatrix} 0 & 1 \\\\[2pt] 2 & 3 \\end{bmatrix}"),
    ("It takes $\\boxed{5.4 \\text{ cents}}$.", "5.4 \\text{ cents}"),
    ("The number is $\\boxed{\\dfrac{9}{19}}$.", "\\dfrac{9}{19}"),
    ("We find $f^{-1}(x) = \\boxed{\\frac{5}{x} - 1}$.", "\\frac{5}{x} - 1"),
    ("There are $2^{n-1} = \\boxed{2^{n-1}}$ ways.", "2^{n-1}"),
    ("The letters are $\\boxed{A, C, F}$.", "A, C, F"),
    ("So $\\boxed{\\text{No real solution}}$.", "\\text{No real solution}"),
    ("The range is $\\boxed{\\mathbb{R} \\setminus \\{-2\\}}$", "\\mathbb{R} \\setminus \\{-2\\}"),
    ("It is $\\boxed{-\\frac{1}{4} \\le k \\le 0}$ {end}.", "-\\frac{1}{4} \\le k \\le 0"),
    ("Then $\\boxed{3R^2}$.", "3R^2"),
    ("The plane is $\\boxed{2x + y - 3z + 4 = 0}$.", "2x + y - 3z + 4 = 0"),
    ("The value is $\\boxed{\\log_2 \\frac{3}{7}}$", "\\log_2 \\frac{3}{7}"),
    ("On $\\boxed{\\left[ -\\frac{\\pi^3}{8}, \\frac{\\pi^3}{8} \\right]}$", "\\left[ -\\frac{\\pi^3}{8}, \\frac{\\pi^3}{8} \\right]"),
    ("Its rows: $\\boxed{\\sqrt{(x-1)^{2} + y^{2}}}$", "\\sqrt{(x-1)^{2} + y^{2}}"),
    ("It is $\\boxed{\\text{ellipse}}$ and not $\\{x\\}$.", "\\text{ellipse}"),
]


@pytest.mark.parametrize(("solution", "key"), SOLUTIONS)
def test_written_solutions_are_right_by_their_own_keys(solution, key):
    """Solutions in the manner of competition data sets: what is read out of them is their key, and the key is readable."""
    answer = boxed_answer(solution)
    assert answer == key
    assert unreadable_reason(key, "math") is None
    assert math_match(answer, key) is True


@pytest.mark.parametrize(("solution", "key"), SOLUTIONS)
def test_no_key_is_another_key(solution, key):
    """The same solutions are wrong by every other key of the list."""
    assert [other for _, other in SOLUTIONS if math_match(boxed_answer(solution) or "", other)] == [key]
