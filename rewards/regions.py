"""Sets of real numbers however they are written: intervals, inequalities, set-builder notation, |x| < 2.

Runs only inside a grading child.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sympy import Abs, Basic, EmptySet, Expr, FiniteSet, Integers, Interval, Naturals, Ne, Reals, Set, Symbol, Union, oo
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictGreaterThan, StrictLessThan
from sympy.logic.boolalg import true

from rewards.exact import equal_expressions
from rewards.forms import is_name, split_top_level
from rewards.reading import read

_BUILDER = re.compile(
    r"\\\{ ?(?P<name>[^{}|:<>=,\\]{1,12}|\\[a-z]+)"
    r"(?: ?\\in ?(?P<domain>\\mathbb\{[RZN]\}|R|\([^|:]*\)|\[[^|:]*\]))? ?[|:] ?(?P<condition>.*)\\\}",
    re.DOTALL,
)
_LESS = re.compile(r"\\setminus(?![a-zA-Z])|(?<=\}) ?- ?(?=\\\{)")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_REAL = re.compile(r",? ?[a-zA-Z] ?\\in ?\\mathbb\{R\}")
_MEMBER = re.compile(r"(?P<name>[^<>=()\[\]{}]{1,20}) ?\\in ?(?P<set>.*)", re.DOTALL)
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")
_CONNECTIVE = re.compile(r" ?,? ?\\text\{(and|or)\} ?")
_INTERVAL = re.compile(r"([(\[\]])(.*)([)\[\]])", re.DOTALL)
_RELATIONS = {"<": StrictLessThan, ">": StrictGreaterThan, "\\le": LessThan, "\\ge": GreaterThan, "\\ne": Ne}
_HINT = re.compile(r"[<>]|\\(?:le|ge|ne|in|cup|cap|setminus|mathbb|infty)(?![a-zA-Z])|[|:]")
_MAX_PARTS, _MAX_NUMBERS = 12, 40


class Region(NamedTuple):
    """A set of real numbers.

    Attributes:
        name: the variable it is said of; "" if it is bound or not named.
        set: sympy's.
        solved: whether an inequality had to be solved for it.
    """

    name: str
    set: Set
    solved: bool


def may_be_region(text: str) -> bool:
    """Whether a tidied text has a sign of an inequality, an interval or a set."""
    return bool(_HINT.search(text)) or bool(_INTERVAL.fullmatch(text))


def _builder(text: str) -> re.Match | None:
    """The parts of a text that is one set in set-builder notation."""
    match = _BUILDER.fullmatch(text)
    if not match:
        return None
    opened = match["condition"].find("\\{")
    closed = match["condition"].find("\\}")
    return match if closed < 0 or 0 <= opened < closed else None  # else "\\{…\\} \\cup \\{…\\}"


def is_builder(text: str) -> bool:
    """Whether a tidied text is in set-builder notation."""
    return bool(_builder(text))


def open_builder(text: str) -> tuple[str, bool]:
    """(condition, True) of ``\\{x \\mid condition\\}`` over the reals, (text, False) of anything else."""
    match = _builder(text)
    if not match or _discrete(match):
        return text, False
    condition = match["condition"].strip()
    if match["domain"] and match["domain"] not in ("\\mathbb{R}", "R"):
        condition = f"{match['name'].strip()} \\in {match['domain']}, {condition}"
    return _REAL.sub("", condition).strip() or "\\mathbb{R}", True


def _discrete(match: re.Match) -> Set | None:
    return {"\\mathbb{Z}": Integers, "\\mathbb{N}": Naturals}.get(match["domain"])


def _whole_numbers(match: re.Match) -> Region | None:
    """The region of ``\\{x \\in \\mathbb{Z} \\mid 1 < x < 5\\}``, of few numbers."""
    found = _condition(match["condition"].strip())
    numbers = found.set.intersect(_discrete(match)) if found else None
    if numbers is None or not numbers.is_finite_set or len(numbers) > _MAX_NUMBERS:
        return None
    return Region("", FiniteSet(*numbers), False)


def _number(text: str) -> Expr | None:
    value = read(text, False)
    return value if isinstance(value, Expr) else None


def _interval(text: str) -> Set | None:
    """One interval, French brackets included, or one of the sets with a name."""
    text = text.strip()
    if text == "\\mathbb{R}":
        return Reals
    if text in ("\\emptyset", "\\{\\}"):
        return EmptySet
    if text.startswith("\\{") and text.endswith("\\}"):
        points = [_number(part) for part in split_top_level(text[2:-2], ",")]
        return FiniteSet(*points) if points and None not in points else None
    match = _INTERVAL.fullmatch(text)
    if not match:
        return None
    ends = split_top_level(match[2], ",")
    if len(ends) != 2:
        ends = split_top_level(match[2], ";")
    if len(ends) != 2:
        return None
    low, high = map(_number, ends)
    if low is None or high is None:
        return None
    if low.is_number and high.is_number and (low < high) is not true:
        return None
    return Interval(low, high, left_open=match[1] in "(]", right_open=match[3] in ")[")


def _written_set(text: str) -> Set | None:
    """Unions, and sets less another, of intervals and of sets in set-builder notation."""
    whole, *taken = _LESS.split(text)
    pieces = [part.strip() for part in _CUP.split(whole)]
    if len(pieces) > _MAX_PARTS:
        return None
    parts = [_interval(part) for part in pieces]
    for index, part in enumerate(pieces):
        if parts[index] is None and len(pieces) > 1 and is_builder(part):
            found = read_region(part)
            parts[index] = found.set if found else None
    if None in parts:
        return None
    region = Union(*parts)
    for text in taken:
        other = _interval(text)
        if other is None:
            return None
        region = region - other
    return region


def _simple(relation: Relational, symbol: Symbol) -> bool:
    """Whether one side is the variable alone, or its distance from a number, and the other a number."""
    sides = (relation.lhs, relation.rhs)
    if symbol in sides:
        return True
    side = next((side for side in sides if side.has(symbol)), None)
    return (
        isinstance(side, Abs)
        and side.args[0].as_poly(symbol) is not None
        and side.args[0].as_poly(symbol).degree() == 1
    )


def _solution(relation: Relational) -> tuple[Set, bool] | None:
    """(the real numbers for which a relation in one symbol holds, whether that needed more than reading)."""
    symbols = relation.free_symbols
    if isinstance(relation.lhs, Symbol) and relation.lhs not in relation.rhs.free_symbols:
        symbol, bound, kind = relation.lhs, relation.rhs, type(relation)
    elif isinstance(relation.rhs, Symbol) and relation.rhs not in relation.lhs.free_symbols:
        flipped = relation.reversed
        symbol, bound, kind = flipped.lhs, flipped.rhs, type(flipped)
    elif len(symbols) == 1:
        (symbol,) = symbols
        return relation.as_set(), not _simple(relation, symbol)
    else:
        return None
    bound = bound.doit()
    if kind is Ne:
        return Reals - FiniteSet(bound), False
    if kind in (StrictLessThan, LessThan):
        return Interval(-oo, bound, right_open=kind is StrictLessThan), False
    return Interval(bound, oo, left_open=kind is StrictGreaterThan), False


def ascending(text: str) -> str:
    """A chain of inequalities "b > a \\ge 0" read from its small end; other texts as they are."""
    signs = _RELATION.findall(text)
    if not signs or any(sign not in (">", "\\ge") for sign in signs) or "=" in text:
        return text
    sides = [side.strip() for side in _RELATION.split(text)]
    turned = ["<" if sign == ">" else "\\le " for sign in reversed(signs)]
    return "".join(part for pair in zip(reversed(sides), [*turned, ""], strict=True) for part in pair)


def _chain(text: str) -> tuple[str, Set, bool] | None:
    """(variable, set, solved) of "1 < x \\le 2"."""
    text = ascending(text)
    signs = _RELATION.findall(text)
    sides = [side.strip() for side in _RELATION.split(text)]
    if not signs or not all(sides) or len(signs) > 2:
        return None
    name, region, solved = "", Reals, False
    expressions = [_number(side) for side in sides]
    if None in expressions:
        return None
    if len(sides) == 3 and isinstance(expressions[1], Symbol) and set(signs) <= {"<", "\\le"}:
        low, symbol, high = expressions
        if not (low.has(symbol) or high.has(symbol)):
            return str(symbol), Interval(low.doit(), high.doit(), signs[0] == "<", signs[1] == "<"), False
    plain = [side for side in sides if is_name(side)]
    for sign, left, right in zip(signs, expressions, expressions[1:], strict=False):
        relation = _RELATIONS[sign](left, right, evaluate=False)
        found = _solution(relation)
        if found is None:
            return None
        region, solved = region.intersect(found[0]), solved or found[1]
    symbols = {str(symbol) for expression in expressions for symbol in expression.free_symbols}
    if len(symbols) == 1:
        (name,) = symbols
    elif len(plain) == 1:
        name = str(_number(plain[0]))
    else:
        return None
    return name, region, solved


def _condition(text: str) -> Region | None:
    """A region from conditions joined by "and", "or" or commas."""
    pieces = _CONNECTIVE.split(text)
    joined = [(pieces[0], "")] + [(pieces[i + 1], pieces[i]) for i in range(1, len(pieces) - 1, 2)]
    parts: list[tuple[str, str]] = []
    for piece, word in joined:
        inside = split_top_level(piece, ",;") if not _interval(piece) else [piece]
        if not inside:
            return None
        for index, part in enumerate(inside):
            joined_by = word if index == 0 else ","
            if "\\ne" in part and part.count("\\pm") == 1:
                parts += [(part.replace("\\pm", "+"), joined_by), (part.replace("\\pm", "-"), "and")]
            else:
                parts.append((part, joined_by))
    name, region, solved = "", None, False
    for part, word in parts[:_MAX_PARTS]:
        member = _MEMBER.fullmatch(part)
        if member and is_name(member["name"].strip()):
            found = _written_set(member["set"])
            symbol = _number(member["name"].strip())
            if found is None or symbol is None:
                return None
            here = (str(symbol), found, False)
        else:
            chain = _chain(part)
            if chain is None:
                return None
            here = chain
        if name and here[0] != name:
            return None
        name, solved = here[0], solved or here[2]
        if region is None:
            region = here[1]
        elif word == "or":
            region = region.union(here[1])
        else:
            both = region.intersect(here[1])
            region = region.union(here[1]) if word == "," and both is EmptySet else both
    return Region(name, region, solved) if region is not None else None


def read_region(text: str) -> Region | None:
    """The set of real numbers that a tidied text describes; None if it is none."""
    try:
        builder = _builder(text)
        if builder and _discrete(builder):
            return _whole_numbers(builder)
        condition, bound = open_builder(text)
        if not bound or condition == "\\mathbb{R}":
            written = _written_set(text)
            if written is not None:
                return Region("", written, False)
        found = _condition(condition)
        return found._replace(name="") if found and bound else found
    except (TypeError, ValueError, NotImplementedError, AttributeError, ArithmeticError, RecursionError):
        return None


def _pieces(region: Set) -> list[Set] | None:
    if region is Reals:
        region = Interval(-oo, oo)
    parts = list(region.args) if isinstance(region, Union) else [region]
    flat: list[Set] = []
    for part in parts:
        if isinstance(part, FiniteSet):
            flat += [FiniteSet(point) for point in part.args]
        elif isinstance(part, Interval):
            flat.append(part)
        elif part is not EmptySet:
            return None
    return flat


def _same_number(one: Basic, other: Basic) -> bool:
    return one == other or equal_expressions(one, other) is True


def _same_piece(one: Set, other: Set) -> bool:
    if isinstance(one, Interval) and isinstance(other, Interval):
        return (
            (one.left_open, one.right_open) == (other.left_open, other.right_open)
            and _same_number(one.start, other.start)
            and _same_number(one.end, other.end)
        )
    if isinstance(one, FiniteSet) and isinstance(other, FiniteSet):
        return _same_number(one.args[0], other.args[0])
    return False


def same_region(gold: Region, answer: Region) -> bool | None:
    """Whether two regions are the same set, said of the same variable; None if sympy leaves one unevaluated.

    Args:
        gold: of the gold answer.
        answer: of the response's; if it has to be solved for and the gold answer has not, it is wrong.
    """
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if answer.solved and not gold.solved:
        return False
    pieces = _pieces(gold.set), _pieces(answer.set)
    if pieces[0] is None or pieces[1] is None:
        return True if gold.set == answer.set else None
    if len(pieces[0]) != len(pieces[1]):
        return False
    left = list(pieces[1])
    for piece in pieces[0]:
        match = next((other for other in left if _same_piece(piece, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True
