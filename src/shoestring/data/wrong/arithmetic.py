"""Arithmetic recomputed: equations between numbers that do not hold."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

NUMBER = r"\d[\d,]*(?:\.\d+)?|\.\d+"
TERM = rf"[(\s]*[$£€]?\s?(?:{NUMBER})%?[)\s]*"
# `48/2 = 24`, also inside <<48/2=24>>. What stands before or after must not belong to the expression.
EQUATION = re.compile(
    rf"(?P<expression>{TERM}(?:[-+*/×÷−–][\s]*{TERM})+)=\s*[$£€]?\s?(?P<result>-?(?:{NUMBER}))(?P<percent>\s?%)?"
    r"(?![\d.,]*\d)(?![eE]\d)(?!\s*[-+*/×÷−–^=(]\s*[$£€]?[\d(.])(?!\s*[/^]|\s*[+*×÷]\s*\w)(?P<cents>\s*(?:¢|cents?\b))?"
)
BELONGS_BEFORE = re.compile(r"(?:[-+*/×÷−–^=%.,:)\d]|\b[A-Za-z])\s*\Z|[A-Za-z_]\Z")
SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "$": " ", "£": " ", "€": " ", ",": ""})
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
AMBIGUOUS = re.compile(r"/[^-+*()]*/")  # 2000 / 2/3: by two thirds, or by 2 and by 3
FLOAT_ERROR = Fraction(1, 10**9)  # of a calculator that writes 14.999999999999998
MAX_DIGITS = 15


def wrong_arithmetic(text: str) -> str | None:
    """The first equation between numbers that does not hold, with the right result; None when all hold.

    A result may be rounded either way in its last place, or a percentage of the value.
    """
    for found in EQUATION.finditer(text):
        expression = found["expression"]
        begins = found.end("expression") - len(expression.lstrip())
        if BELONGS_BEFORE.search(text, max(0, begins - 20), begins):
            continue
        value = _value(expression)
        if value is None:
            continue
        shown = found["result"].replace(",", "")
        result = Fraction(shown)
        unit = Fraction(1, 10 ** len(shown.partition(".")[2]))
        candidates = [value]
        if found["percent"] or "%" in expression:
            candidates += [value * 100, value / 100]
        elif found["cents"]:
            candidates.append(value * 100)
        if all(
            abs(c - result) >= min(unit, max(abs(c), Fraction(1))) and abs(c - result) > FLOAT_ERROR * abs(c)
            for c in candidates
        ):
            right = f"{float(value):,.6g}"
            return f"{' '.join(found[0].split())}, but it is {right}"
    return None


def _value(expression: str) -> Fraction | None:
    if AMBIGUOUS.search(expression.translate(SIGNS)):
        return None
    source = re.sub(r"([\d.]+)%", r"(\1/100)", expression.translate(SIGNS)).strip()
    try:
        return _evaluate(ast.parse(re.sub(r"(?<![\d.])0+(?=\d)", "", source), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if len(str(node.value)) > MAX_DIGITS:
            raise ValueError("longer than a person writes")
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    raise ValueError("not plain arithmetic")
