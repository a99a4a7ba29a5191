"""Equality by numbers: exact enough for tiny differences, at points of every sign, and silent where it cannot say."""

import pytest

from stepladder.data.grading.numeric import proportional, same_value
from stepladder.data.grading.reader import read


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("\\sin^2 x", "1-\\cos^2 x", True),
        ("|x|", "x", False),
        ("|x||y|", "x\\cdot y", False),
        ("|x||y||z|", "|x \\cdot yz|", True),
        ("|x||y||z|", "x \\cdot yz", False),
        ("\\sqrt{x^2}", "x", False),
        ("\\sqrt[3]{x^3}", "x", True),
        ("\\arcsin x", "\\frac{\\pi}{2}-\\arccos x", True),
        ("\\lfloor x\\rfloor", "\\lceil x\\rceil-1", False),
        ("(-1)^n", "\\cos(\\pi n)", True),
        ("e^{1000x}", "e^{1001x}", False),
        ("\\sqrt{2}+10^{-400}", "\\sqrt{2}", False),
        ("\\sqrt{10^{1000}+1}", "10^{500}", False),
        ("\\sin(10^{-200})", "10^{-200}", False),
        ("\\sqrt{5+2\\sqrt{6}}", "\\sqrt2+\\sqrt3", True),
        ("\\sqrt{x-20}\\sin x", "\\sqrt{x-20}\\cos x", None),
        ("e^{10^{10}}", "e^{10^{10}}+1", None),
        ("\\infty+1", "\\infty", None),
    ],
)
def test_same_value(left, right, same):
    """True and False are certain; None is neither."""
    assert same_value(read(left), read(right)) is same
    assert same_value(read(right), read(left)) is same


@pytest.mark.parametrize(
    ("left", "right", "equation", "inequality"),
    [
        ("2\\sin x", "-\\sin x", True, False),
        ("2\\sin x", "3\\sin x", True, True),
        ("\\sin x", "x\\sin x", False, False),
        ("\\sin x", "\\cos x", False, False),
    ],
)
def test_proportional(left, right, equation, inequality):
    """An equation may be multiplied by any number but 0, an inequality by a positive one."""
    assert proportional(read(left), read(right), positive=False) is equation
    assert proportional(read(left), read(right), positive=True) is inequality
