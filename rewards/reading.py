"""Makes sympy objects of tidied answers, by math-verify's parser. Runs only inside a grading child.

The parser multiplies or adds numbers that stand side by side ("5 6" is 11, "(2)(3)" is 5), drops what it does not know,
and takes any command for a symbol. So products are made explicit here before it sees the text, and a text is refused as
a whole if a part of it has no meaning.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from antlr4 import PredictionMode
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy import Basic, MatrixBase, Mul, Number, Pow, Rational, nan, zoo

from rewards.measures import TRIGONOMETRY
from rewards.symbols import rename_misread
from rewards.vocabulary import FUNCTIONS, GREEK, words

_CONVERSION = ConversionConfig(lowercase_symbols=False)
_PREDICTIONS = (PredictionMode.SLL, PredictionMode.LL)
_BRACKET = re.compile(r"\\.|[{}()\[\]]", re.DOTALL)
_MAX_DEPTH = 40
_COMMANDS = (
    FUNCTIONS
    | GREEK
    | words(
        """frac binom sqrt cdot times div le ge ne in notin cup cap setminus emptyset mathbb lfloor rfloor lceil rceil
    overline dot vec hat tilde widehat widetilde overrightarrow sum prod int lim to mod begin end circ partial gets
    operatorname"""
    )
)
_COMMAND = re.compile(r"\\([a-zA-Z]+|[^a-zA-Z])")
_KNOWN_SIGNS = frozenset("{}\\")
_LETTER_TEXT = re.compile(r"\\text\{ ?([a-zA-Z]) ?\}")
_CHARACTERS = re.compile(r"[0-9a-zA-Z\\{}()\[\]+\-*/^_=<>!|.,:;& ]*")
# Numbers side by side, a number in a base, digits before a bare point: none has one meaning.
_DECIMAL = re.compile(r"\d*\.?\d*(?:[eE][+-]?\d{1,4})?")
_SIDE_BY_SIDE = re.compile(r"\d ?_|\d +[\d.]|\. +\d|\d\.\d*\.|[)\]}] ?\.\d|\d\.(?!\d)")
# Letters that are never called: x(3) is a product, f(3) a value.
_NO_CALLS = frozenset("abcdijklmnorstxzBCDIJKLMOUWXYZ") | {
    "\\pi",
    "\\alpha",
    "\\beta",
    "\\theta",
    "\\lambda",
    "\\omega",
}
_ARGUMENT_END = frozenset(["+", "-", "=", "<", ">", ",", ")", "\\cdot", "\\times", "\\le", "\\ge", "\\ne"])
_FACTOR = re.compile(r"[{}()]|\\[a-zA-Z]+|\d+(?:\.\d+)?|\S")


_CALL = re.compile(rf" ?\\(?:{'|'.join(FUNCTIONS)})(?![a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) ?\^\{\\circ\}")


def brackets_match(text: str) -> bool:
    """Whether every brace of ``text`` that is not escaped has its partner, and nothing is nested too deep to read."""
    depth = deepest = braces = 0
    for match in _BRACKET.finditer(text):
        step = {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(match.group(), 0)
        braces += step * (match.group() in "{}")
        depth += step
        deepest = max(deepest, depth)
        if braces < 0:
            return False
    return braces == 0 and deepest <= _MAX_DEPTH


def _explicit_products(text: str) -> str:
    """``text`` with a sign where the parser would see a mixed number or a call, and brackets where it sees no end.

    "2(3)", "\\pi(2)" and "x(3)" are products; "\\ln 2 \\cdot 3" is 3 ln 2.
    """
    out: list[str] = []
    scripts: list[bool] = []  # open groups: whether each belongs to what is before it
    factor_ended = False
    # The last function whose argument has no brackets: where that begins (-1: none), and inside how many groups.
    argument, depth, starting = -1, 0, False
    previous, position = "", 0
    for match in _FACTOR.finditer(text):
        token = match.group()
        out.append(text[position : match.start()])
        position = match.end()
        number = token[0].isdigit()
        if (
            starting
            and len(scripts) == depth
            and token not in ("^", "_")
            and not (token == "{" and previous in ("^", "_"))
        ):
            starting = False
            argument = -1 if token in ("(", "{", "[") else len(out)
        if argument >= 0 and not starting and len(scripts) <= depth:
            divided = token == "/" and _CALL.match(text, match.end())
            if (token in ("\\cdot", "\\times") or divided) and len(scripts) == depth:
                out.insert(argument, "(")
                out.append(")")
            if len(scripts) < depth or token in _ARGUMENT_END or token[1:] in FUNCTIONS:
                argument = -1
        if factor_ended and (number or token in ("(", "\\frac", "\\binom")):
            out.append("\\cdot ")
        if token == "{":
            scripts.append(previous in ("^", "_", "\\begin", "\\end", "\\mathbb"))
            factor_ended = False
        elif token == "}":
            factor_ended = not (scripts and scripts.pop()) and text[match.end() : match.end() + 1] not in ("{", "[")
        else:
            factor_ended = number or token == ")" or (token in _NO_CALLS and text[match.end() :].startswith("("))
        power = text[match.end() : match.end() + 1] == "^" and "\\int" not in text
        bare = (token.isalpha() and token != "e") or token[1:] in GREEK
        out.append(f"{{{token}}}" if power and bare else token)  # "{x}^{2}" is read ten times as fast as "x^{2}"
        if token[1:] in FUNCTIONS:
            starting, depth = True, len(scripts)
        previous = token
    out.append(text[position:])
    return "".join(out)


def _is_odd_root(expression: Basic) -> bool:
    """Whether an expression is an odd root of a negative number, which is real if symbols are."""
    if not isinstance(expression, Pow) or not isinstance(expression.exp, Rational) or expression.exp.p != 1:
        return False
    return bool(expression.exp.q % 2 and expression.exp.q > 1 and expression.base.is_negative)


class _Parser(_Latex2Sympy):
    """math-verify's parser with a choice of ANTLR's prediction: SLL is several times as fast, and fails on more."""

    prediction = PredictionMode.LL

    def create_parser(self, latex_str: str):
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = self.prediction
        return parser

    def parse_number(self, text: str) -> Number:
        """The exact number that digits spell; sympy's own way would run them through Python's compiler and round."""
        if not _DECIMAL.fullmatch(text):
            raise ValueError("no number")
        value = Fraction(text)
        return Rational(value.numerator, value.denominator)


def _parse(text: str, imaginary: bool) -> Basic | MatrixBase | None:
    for prediction in _PREDICTIONS:
        parser = _Parser(is_real=None if imaginary else True, config=_CONVERSION)
        parser.prediction = prediction
        try:
            return parser.parse(text)
        except Exception:  # the parser has no type of its own for "cannot"
            continue
    return None


@lru_cache(maxsize=4096)
def read(text: str, imaginary: bool) -> Basic | MatrixBase | None:
    """The sympy object that an answer is; None if it has no single meaning or the parser cannot read it.

    Args:
        text: tidied.
        imaginary: whether i is the imaginary unit; symbols then stand for complex numbers, else for real ones.
    """
    text = rename_misread(_LETTER_TEXT.sub(r" \1 ", text), imaginary)
    if TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    if not _CHARACTERS.fullmatch(text) or not brackets_match(text) or _SIDE_BY_SIDE.search(text):
        return None
    for match in _COMMAND.finditer(text):
        name = match.group(1)
        if name not in _COMMANDS and name not in _KNOWN_SIGNS:
            return None
    parsed = _parse(_explicit_products(text), imaginary)
    if not isinstance(parsed, Basic | MatrixBase):
        return None
    if "\\sqrt[" in text and not imaginary:
        parsed = parsed.replace(_is_odd_root, lambda root: Mul(-1, Pow(-root.base, root.exp), evaluate=False))
    return None if parsed.has(nan, zoo) else parsed
