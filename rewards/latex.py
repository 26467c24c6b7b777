r"""Takes markup out of an answer: what is left is LaTeX with one spelling for each meaning.

One pass over the tokens. Fonts, colours, sizes, boxes, tags and spacing go; arguments get their braces (``\frac12``,
``\sqrt 2``, ``x^10``, ``sqrt(2)``); relations, brackets and functions get one name (``\leqslant``, ``<=``; ``ln``,
``\operatorname{ln}``); words come into ``\text{…}`` whether they stood in a text command or not, numbers in a text
command come out of it. Nothing is evaluated and no digit joins another: what stood between two digits is a space.
"""

from __future__ import annotations

import re

from rewards.commands import (
    ACCENTS,
    ALIGNED,
    CHARACTERS,
    COLOURED,
    FRACTIONS,
    NAMES,
    NOTHING,
    SILENT,
    SIZES,
    STYLED,
    TEXT,
)
from rewards.vocabulary import ALIASES, CURRENCIES, FUNCTIONS, GREEK, is_bare_word

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\s+|[a-zA-Z]+|.", re.DOTALL)
MAX_DEPTH = 40
# Stand in for spacing until it is known whether digits around it are one number: a wide space, ``\\!``, ``{,}``.
_WIDE, _TIGHT, _GROUPING = "\x00", "\x01", "\x02"
_SPACING = " \x00\x01"
_PARTNER = {"(": ")", "[": "]"}
_INFIX = {"\\over": "frac", "\\choose": "binom"}
_RELATIONS = frozenset(["=", "<", ">", "\\le", "\\ge", "\\leq", "\\geq", "\\approx", "\\ne", "\\neq"])
_ABBREVIATION = re.compile(r"(?<![a-zA-Z])(?:[a-zA-Z]\.)+[a-zA-Z]?(?![a-zA-Z])")
_ORDINALS = frozenset(("\\text{st}", "\\text{nd}", "\\text{rd}", "\\text{th}"))


# ASCII functions that have brackets of their own in LaTeX, and functions with letters glued on ("xsinx").
_BRACKET_FUNCTIONS = {
    "abs": ("|", "|"), "floor": ("\\lfloor ", "\\rfloor "), "ceil": ("\\lceil ", "\\rceil "), "factorial": ("(", ")!"),
}  # fmt: skip
_GLUED = re.compile(r"([xyztn]?)(sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|arcsin|arccos|arctan)([xyzn]?)")


class Unreadable(ValueError):
    """The text is no well-formed LaTeX: a brace without its partner, a command without its argument, too deep."""


def _context(before: list[str]) -> tuple[bool, bool, bool]:
    """Of the pieces before a word: whether they end in a number, in white space or a bracket, in a division sign."""
    spaced = bracketed = False
    for piece in reversed(before):
        if not piece.strip(_SPACING):
            spaced = spaced or bool(piece)
        elif piece in ("(", "[") and not bracketed:  # "5 (cm)"
            bracketed = spaced = True
        else:
            return piece[-1].isdigit() or piece[-1] in "})!" or piece == "\\pi ", spaced, piece.strip() == "/"
    return False, spaced, False


class _Reader:
    def __init__(self, text: str):
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.depth = 0

    # --- looking ---

    def peek(self, ahead: int = 0) -> str:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def skip_space(self) -> None:
        while self.peek().isspace():
            self.at += 1

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable("something is missing")
        self.at += 1
        return token

    # --- arguments ---

    def within(self, closing: str, in_text: bool = False) -> str:
        """The rest of a group or of brackets whose opening is taken; ``closing`` is taken too."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        inside = self.sequence(closing, in_text)
        self.depth -= 1
        return inside.strip(_SPACING)

    def option(self) -> str:
        """An optional argument's content; "" if there is none."""
        self.skip_space()
        if self.peek() != "[":
            return ""
        self.at += 1
        return self.within("]")

    def raw(self) -> str:
        """An argument of a command that says nothing, as it stands."""
        self.skip_space()
        if self.take() != "{":
            return self.tokens[self.at - 1]
        depth, start = 1, self.at
        while depth:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
        return "".join(self.tokens[start : self.at - 1])

    def argument(self, digits: bool = True, brackets: bool = False) -> str:
        """A command's argument: a group, or one token.

        Args:
            digits: whether a number is one token, else its first digit is.
            brackets: whether "(…)" is a group.
        """
        self.skip_space()
        token = self.take()
        if token == "{" or (token == "(" and brackets):
            return self.within("}" if token == "{" else ")")
        if token[0].isdigit() and not digits and len(token) > 1:
            self.at -= 1
            self.tokens[self.at] = token[1:].lstrip(".") if token[1] != "." else token[1:]
            return token[0]
        if token.isalpha():
            name = ALIASES.get(token, token)
            if len(token) > 1 and name in GREEK:
                return f"\\{name}"
            if len(token) > 1:
                self.at -= 1
                self.tokens[self.at] = token[1:]
            return token[0]
        if (token in "+-" and digits) or (token.startswith("\\") and len(token) > 1):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Unreadable("too deep")
            if token in "+-":
                inside = token + self.argument(digits, brackets)
            else:
                self.at -= 1
                inside = "".join(self.item(False)).strip(_SPACING)
            self.depth -= 1
            return inside
        if token[0].isdigit() or token in "*'∗":
            return token
        raise Unreadable("an argument is missing")

    # --- the pass ---

    def sequence(self, closing: str, in_text: bool = False) -> str:
        """Everything up to ``closing``, which is taken.

        Args:
            closing: a token; "" for the end.
            in_text: whether this is inside a text command.
        """
        out: list[str] = []
        while True:
            token = self.peek()
            if token == closing:
                self.at += bool(closing)
                return "".join(out)
            if not token or token == "}":
                raise Unreadable("a bracket has no partner")
            if token in _INFIX:
                self.at += 1
                above, below = "".join(out).strip(_SPACING), self.within(closing, in_text)
                return f"\\{_INFIX[token]}{{{above}}}{{{below}}}"
            if token in "([" and closing == _PARTNER[token]:
                self.at += 1
                out += [token, self.within(closing), closing]
                continue
            out += self.item(in_text, out)

    def item(self, in_text: bool, before: list[str] | None = None) -> list[str]:
        """The next piece in its one spelling."""
        token = self.take()
        if token.isspace():
            return [" "]
        if token.isascii() and token.isalpha():
            return self.letters(token, in_text, before or [])
        if token == "{":
            inside = self.within("}", in_text)
            return [_GROUPING] if inside == "," else [_WIDE, inside, _WIDE]
        if token.startswith("\\") and len(token) > 1:
            return self.command(token[1:], in_text)
        if token in "^_":
            return [self.script(token)]
        if token == "*":
            if self.peek() == "*":
                self.at += 1
                return [self.script("^")]
            return ["\\cdot "]
        if token in ("$", "\\"):  # a lone backslash is the end of a text that was cut after it
            return [_WIDE]
        if token == "%":
            return ["\\%"]
        if token == "&":
            self.skip_space()
            return [" "] if self.peek() in _RELATIONS else [","]
        if token == "~":
            if self.peek() == "=":
                self.at += 1
                return ["\\approx "]
            return [" "]
        if token in "<>=!:+-." and not in_text:
            return [self.operator(token, before or [])]
        return [token]

    def operator(self, token: str, before: list[str]) -> str:
        """Operators spelled with several characters."""
        following = self.peek()
        if (token in "<>" and following == "=") or (token == "=" and following == "<"):
            self.at += 1
            return "\\ge " if token == ">" else "\\le "
        if token == "!" and following == "=":
            last = before[-1][-1:] if before else ""
            if not (last.isdigit() or last in ")}"):  # "5!=120" is a factorial
                self.at += 1
                return "\\ne "
        if token in ":=" and following == "=":
            self.at += 1
            return "="
        if token == "+" and (following == "-" or (following == "/" and self.peek(1) == "-")):
            self.at += 1 if following == "-" else 2
            return "\\pm "
        if token == "-" and following == ">":
            self.at += 1
            return "\\to "
        if token == "." and following == "." and self.peek(1) == ".":
            self.at += 2
            return "\\ldots "
        if token == "." and following[:1].isdigit() and not (before and before[-1][-1:].isdigit()):
            return "0."
        return token

    def script(self, mark: str) -> str:
        """A super- or subscript."""
        self.skip_space()
        inside = self.argument(brackets=mark == "^")
        if inside in ("\\max", "\\min"):
            inside = inside[1:]
        if mark == "^":
            if inside in ("'", "''"):
                return inside
            if inside in _ORDINALS or not inside:
                return ""
            if inside.startswith("\\circ"):
                return "^{\\circ}" + inside[5:].strip()
        return f"{mark}{{{inside}}}" if inside else ""

    def letters(self, token: str, in_text: bool, before: list[str]) -> list[str]:
        """Bare letters: a word, a function, a Greek letter, or symbols."""
        name = ALIASES.get(token, token)
        if in_text:
            return [self.word(token)]
        if len(token) == 1:
            return [token]
        following = next((t for t in self.tokens[self.at : self.at + 2] if not t.isspace()), "")
        after_number, spaced, divided = _context(before)
        if name == "in" and following in ("(", "[", "\\{", "\\mathbb", "\\left"):
            return ["\\in "]
        if name == "log" and following.isdigit() and self.peek(1) == "(":  # log2(8)
            return [f"\\log_{{{self.take()}}}"]
        if name in FUNCTIONS and not (name in ("min", "sec") and (after_number or following != "(")):
            return [f"\\{name} "]
        if name in GREEK:
            return [f"\\{name} "]
        if name in ("sqrt", "cbrt"):
            return [self.root("3" if name == "cbrt" else "")]
        if name == "frac" and following in ("{", "("):
            return self.command("frac", False)
        if name in _BRACKET_FUNCTIONS and following == "(":
            self.skip_space()
            self.at += 1
            opening, closing = _BRACKET_FUNCTIONS[name]
            return [opening, self.within(")"), closing]
        if name == "mod":
            return ["\\text{mod}"]
        glued = _GLUED.fullmatch(token)
        if glued and (glued[1] or glued[3]):
            self.at -= 1
            self.tokens[self.at : self.at + 1] = [part for part in glued.groups() if part]
            return []
        if is_bare_word(token, after_number, spaced, divided):
            if self.peek() == "." and (token in CURRENCIES or self.peek(1) in ("", "$", "}") or self.peek(1).isspace()):
                self.at += 1
            return [f"\\text{{{token}}}"]
        if after_number and token.startswith(("pi", "sqrt")) and token != "pi":
            self.at -= 1
            self.tokens[self.at : self.at + 1] = ["pi", token[2:]] if token.startswith("pi") else ["sqrt", token[4:]]
            return []
        return [token]

    def word(self, token: str) -> str:
        """A word inside a text command, with the points of its abbreviation."""
        word = token
        while self.peek() in (".", "'", "-") and (self.peek(1).isalpha() or (self.peek() == "." and len(word) > 1)):
            word += self.take()
            if self.peek().isalpha():
                word += self.take()
        word = _ABBREVIATION.sub(lambda match: match.group().replace(".", ""), word).rstrip(".")
        name = ALIASES.get(word, word)
        if name in ("ln", "sin", "cos", "tan", "log", "exp", "arctan", "arcsin", "arccos", "cot", "gcd", "lcm", "det"):
            return f"\\{name} "
        return f"\\text{{{word}}}"

    def root(self, degree: str = "") -> str:
        degree = self.option() or degree
        inside = self.argument(brackets=True)
        return f"\\sqrt[{degree}]{{{inside}}}" if degree and degree != "2" else f"\\sqrt{{{inside}}}"

    def command(self, name: str, in_text: bool) -> list[str]:
        """A command (without its backslash) with what belongs to it."""
        star = "*" if name in ("tag", "hspace", "vspace", "operatorname") and self.peek() == "*" else ""
        self.at += len(star)
        if name in SIZES:
            self.skip_space()
            self.at += self.peek() == "."
            return []
        if name in NOTHING:
            return [_WIDE]
        if name == "rm":
            return [self.sequence_of_words()]
        if name in STYLED:
            self.option()
            return [_WIDE, self.argument(), _WIDE] if not in_text else [self.shown_text()]
        if name in TEXT:
            return [self.text()]
        if name in SILENT:
            self.option()
            for _ in range(SILENT[name]):
                self.raw()
            return [_WIDE]
        if name in COLOURED:
            for _ in range(COLOURED[name]):
                self.option()
                self.raw()
            self.option()
            return [_WIDE, self.argument(), _WIDE]
        if name in FRACTIONS:
            above = self.argument(digits=False, brackets=True)
            below = self.argument(digits=False, brackets=True)
            return [f"\\{FRACTIONS[name]}{{{above}}}{{{below}}}"]
        if name == "sqrt":
            return [self.root()]
        if name == "begin":
            return [self.environment()]
        if name in ("mathbb", "Bbb"):
            return [f"\\mathbb{{{self.argument()}}}"]
        if name in ("pmod", "pod"):
            return [f"(\\text{{mod}} {self.argument()})"]
        if name == "not":
            self.skip_space()
            return ["\\ne "] if self.peek() == "=" and self.take() else ["\\not "]
        if name in CHARACTERS:
            return [CHARACTERS[name]]
        if name == "\\":
            return [","]
        if name == "&":
            return [","]
        if name == "!":
            return [_TIGHT]
        if name in "()[],;:> /@":
            return [] if name in "/@" else [" " if name in ", " else _WIDE]
        if len(name) == 1 and name in "{}|%#_":
            return [f"\\{name}"]
        if len(name) == 1 and not name.isalpha():
            return [" ", name] if name == "." else ["\\", name]
        name = NAMES.get(name, name)
        if name in ACCENTS:
            return [f"\\{name}{{{self.argument()}}}"]
        return [f"\\{name} "]

    def text(self) -> str:
        """A text command's argument: words in one text command, numbers and signs outside."""
        self.skip_space()
        if self.peek() != "{":
            token = self.take()
            return f"\\text{{{token}}}" if token.isalpha() else token
        self.at += 1
        inside = self.within("}", in_text=True)
        # Constants that some set upright.
        return inside[6:-1] if inside in ("\\text{i}", "\\text{e}", "\\text{d}") else f"{_WIDE}{inside}{_WIDE}"

    def shown_text(self) -> str:
        """The argument of a font command inside a text command."""
        self.skip_space()
        return self.within("}", in_text=True) if self.take() == "{" else ""

    def sequence_of_words(self) -> str:
        """What follows ``\\rm`` up to the end of its group, whose brace is left."""
        closing = "}" if self.depth else ""
        inside = self.sequence(closing, in_text=True)
        self.at -= len(closing)
        return f"{_WIDE}{inside}{_WIDE}"

    def environment(self) -> str:
        """An environment whose ``\\begin`` is taken: lines of formulas as a list, a matrix as one."""
        name = self.raw()
        self.skip_space()
        columns = self.raw() if name == "array" and self.peek() == "{" else ""
        start = self.at
        try:
            end = self.tokens.index("\\end", start)
        except ValueError:
            raise Unreadable("an environment has no end") from None
        self.at = end + 1
        if self.raw() != name or self.depth >= MAX_DEPTH:
            raise Unreadable("an environment ends in another's name, or is too deep")
        rows = self.tokens[start:end]
        inner = _Reader("")
        inner.depth = self.depth + 1
        if name in ALIGNED or (name in ("cases", "array") and "&" not in rows):
            inner.tokens = rows
            return f"{_WIDE}{inner.sequence('')}{_WIDE}"
        lines = []
        for row in _split(rows, "\\\\"):
            cells = []
            for cell in _split(row, "&"):
                inner.tokens, inner.at = cell, 0
                cells.append(inner.sequence("").strip(_SPACING))
            lines.append(" & ".join(cells))
        while lines and not lines[-1]:
            lines.pop()
        columns = f"{{{columns}}}" if columns else ""
        return f"\\begin{{{name}}}{columns} " + " \\\\ ".join(lines) + f" \\end{{{name}}}"


def _split(tokens: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


_ADJACENT_WORDS = re.compile(r"\\text\{(?!(?:and|or|to)\})([^{}]*)\}[ \x00]*\\text\{(?!(?:and|or|to)\})(?=[^{}]*\})")
_DIVIDED_UNIT = re.compile(r"(\\text\{[^{}]*\}(?:\^\{[^{}]*\})?\s*/\s*)([a-zA-Z]{1,3})(?![a-zA-Z])")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:,\x01|\x01,|[ \x01\x02])\d{3})+(?!\d| ?/)")
_NUMBER_WITH_COMMAS = re.compile(
    r"(?P<head>(?:[^,=]*=)?\s*(?:\\text\{[^{}]*\})?\s*[+-]?\s*)(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)(?P<tail>(?![\d.])[^,]*)"
)
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+) (?![a-zA-Z])")


def plain_latex(text: str) -> str:
    """ASCII LaTeX, markup allowed, in its one spelling.

    Raises:
        Unreadable: the text is not well-formed.
    """
    plain = _Reader(text).sequence("")
    while (joined := _ADJACENT_WORDS.sub(r"\\text{\1 ", plain)) != plain:
        plain = joined
    plain = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), plain)
    plain = " ".join(plain.translate({0: " ", 1: " ", 2: ","}).split())
    with_commas = _NUMBER_WITH_COMMAS.fullmatch(plain)
    if with_commas:
        plain = with_commas["head"] + with_commas["number"].replace(",", "") + with_commas["tail"]
    return _COMMAND_SPACE.sub(r"\1", _DIVIDED_UNIT.sub(r"\1\\text{\2}", plain))
