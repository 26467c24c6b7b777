"""Writes characters outside ASCII as the LaTeX they stand for: operators, brackets, fractions, scripts, widths, units.

Full-width forms, mathematical alphabets and compatibility units follow Unicode's own decompositions (NFKC); what those
would lose (a superscript's height, the space in a mixed number) is rewritten before. Letters of other scripts stay
what they are: a Cyrillic х is no x.
"""

from __future__ import annotations

import re
import unicodedata

from rewards.vocabulary import GREEK

_LATEX = {
    # signs
    **dict.fromkeys("−–—―‐‑‒﹣⁃", "-"), **dict.fromkeys("×✕✖⨯", "\\times "), **dict.fromkeys("·⋅•∙・‧", "\\cdot "),
    "∗": "*", "÷": "\\div ", "∕": "/", "⁄": "/", "±": "\\pm ", "∓": "\\mp ", **dict.fromkeys("≤⩽≦", "\\le "),
    **dict.fromkeys("≥⩾≧", "\\ge "), "≠": "\\ne ", **dict.fromkeys("≈≃≅≒", "\\approx "), "≡": "\\equiv ",
    **dict.fromkeys("∼～〜", "\\sim "), "ˆ": "^", "∧": "\\land ", "∨": "\\lor ", "∪": "\\cup ", "∩": "\\cap ",
    "∈": "\\in ", "∉": "\\notin ", "⊂": "\\subset ", "⊆": "\\subseteq ", "∖": "\\setminus ", "∅": "\\emptyset ",
    "→": "\\to ", "⟶": "\\to ", "⇒": "\\Rightarrow ", "∴": "\\therefore ", "∞": "\\infty ", "∑": "\\sum ",
    "∏": "\\prod ", "∫": "\\int ", "∂": "\\partial ", "∠": "\\angle ", "△": "\\triangle ", "…": "\\ldots ",
    "⋯": "\\ldots ", "′": "'", "″": "''", "∣": "|", "‖": "\\|", "∥": "\\parallel ", "⊥": "\\perp ",
    "‰": "\\permil ", **dict.fromkeys("°º˚", "^{\\circ}"), "℃": "^{\\circ}\\text{C}", "℉": "^{\\circ}\\text{F}",
    # brackets and punctuation
    "｛": "\\{", "｝": "\\}", **dict.fromkeys("⟨〈", "\\langle "), **dict.fromkeys("⟩〉", "\\rangle "),
    **dict.fromkeys("【〔", "["), **dict.fromkeys("】〕", "]"), "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ",
    "⌉": "\\rceil ", **dict.fromkeys("、，،", ","), **dict.fromkeys("。｡", "."), **dict.fromkeys("∶：", ":"),
    **dict.fromkeys("“”„«»「」『』", '"'), **dict.fromkeys("‘’", "'"),
    # letters
    **{sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℕℤℚℂ", "RNZQC", strict=True)},
    "ℯ": "e", "ⅇ": "e", "ⅈ": "i", "ℓ": "l",
    # currencies, and what ends a proof
    "€": "\\text{EUR}", "£": "\\text{GBP}", **dict.fromkeys("¥￥", "\\text{CNY}"), "₹": "\\text{INR}",
    "₩": "\\text{KRW}", "₽": "\\text{RUB}", "₺": "\\text{TRY}", "₫": "\\text{VND}", "¢": "\\text{cents}",
    "฿": "\\text{THB}", **dict.fromkeys("■□∎▪◻◼✓✔☑", "\\blacksquare "),
}  # fmt: skip
# Unicode writes lambda without its b.
_GREEK = {
    unicodedata.lookup(
        f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name.replace('mb', 'm')}"
    ): f"\\{name} "
    for name in GREEK - {"infty"}
}
_GREEK |= {"ϕ": "\\phi ", "ϵ": "\\epsilon ", "ϑ": "\\theta ", "ϱ": "\\rho ", "µ": "\\mu "}
# Words that a number may be followed by, or stand between two of them, in Chinese and Japanese.
_CONNECTIVES = {"和": "and", "与": "and", "及": "and", "或者": "or", "或": "or"}
_COUNTERS = (
    "平方厘米|平方千米|平方分米|平方毫米|平方公里|平方米|立方厘米|立方分米|立方米|厘米|分米|毫米|千米|公里|米|千克|公斤|"
    "毫克|克|吨|毫升|公升|升|小时|分钟|秒钟|秒|美元|元|角|个|個|度|天|日|年|月|周|岁|人|名|位|种|次|本|支|只|页|棵|辆|台|件|"
    "张|块|条|双|步|题|组|对|单位|円|원|圆"
)
_SCALES = {"万": "10^{4}", "亿": "10^{8}"}
_EAST_ASIAN = re.compile(
    rf"(?P<unit>(?<=[\d}}\s万亿])(?:{_COUNTERS}))|(?P<scale>(?<=\d)[{''.join(_SCALES)}])|"
    rf"(?P<word>{'|'.join(_CONNECTIVES)})|选(?=\s*[(（]?[A-J])|答案(?:是|为)?[:：]?"
)
# Punctuation and spaces, letter-like signs, square units, small and full-width forms, mathematical alphabets.
_COMPATIBLE = re.compile(
    "[\u2000-\u206f\u2100-\u214f\u3000\u3300-\u33ff\ufe50-\ufe6f\uff00-\uffef\U0001d400-\U0001d7ff]"
)
_SUPERSCRIPTS, _SUBSCRIPTS = "⁺⁻⁼⁽⁾⁰¹²³⁴⁵⁶⁷⁸⁹ⁿⁱˣʸᵃᵇᵐᵏᵗ", "₊₋₌₍₎₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ"
_SCRIPTS = re.compile(f"(?P<above>[{_SUPERSCRIPTS}]+)⁄(?P<below>[{_SUBSCRIPTS}]+)|[{_SUPERSCRIPTS}]+|[{_SUBSCRIPTS}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_SLASHED = re.compile(r"(?<![\d.])(\d{1,9})⁄(\d{1,9})")
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z(]))?")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_OVERLINED = re.compile("(?:[0-9][\u0304\u0305\u0307])+")
_WIDTHLESS = re.compile(
    "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]"
)  # a reader cannot see them
_OTHER = re.compile(r"[^\x00-\x7f]")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def _script(match: re.Match) -> str:
    if match["above"]:
        return f"\\frac{{{_plain(match['above'])}}}{{{_plain(match['below'])}}}"
    mark = "^" if match.group()[0] in _SUPERSCRIPTS else "_"
    return f"{mark}{{{_plain(match.group())}}}"


def _vulgar(match: re.Match) -> str:
    above, below = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return f"\\frac{{{above}}}{{{below}}}"


def _east_asian(match: re.Match) -> str:
    if match["unit"]:
        return "\\text{units}"
    if match["scale"]:
        return f"\\times {_SCALES[match['scale']]}"
    return f"\\text{{ {_CONNECTIVES[match['word']]} }}" if match["word"] else " "


def _compatible(match: re.Match) -> str:
    character = match.group()
    if "㌀" <= character <= "㏿":  # ㎝, ㎡
        return " " + re.sub(r"(?<=[a-z])([23])$", r"^{\1}", _plain(character).replace("²", "2").replace("³", "3"))
    return _LATEX.get(character) or _plain(character)


def _other(match: re.Match) -> str:
    character = match.group()
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return _LATEX.get(character) or _GREEK.get(character) or character


def ascii_latex(text: str) -> str:
    """``text`` with every character outside ASCII that has a meaning in LaTeX written in LaTeX; others are kept."""
    if text.isascii():
        return text
    text = _WIDTHLESS.sub("", text)
    text = _OVERLINED.sub(lambda match: "\\overline{" + re.sub(r"\D", "", match.group()) + "}", text)
    text = _VULGAR.sub(_vulgar, _SCRIPTS.sub(_script, _SLASHED.sub(r"\\frac{\1}{\2}", text)))
    text = _COMPATIBLE.sub(_compatible, text)
    text = _ROOT.sub(lambda match: f"\\sqrt{_DEGREES[match[1]]}" + (f"{{{match[2]}}}" if match[2] else " "), text)
    return _OTHER.sub(_other, _EAST_ASIAN.sub(_east_asian, text))
