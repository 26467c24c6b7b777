"""LaTeX commands by what becomes of them in an answer's one spelling (``rewards.latex``), named without backslash."""

from __future__ import annotations

from rewards.vocabulary import ALIASES, words

STYLED = words(
    """mathbf mathit mathsf mathtt mathnormal mathcal mathscr mathfrak boldsymbol bm pmb bold underline ensuremath
    mathop mathrel mathbin mathord smash boxed fbox framebox emph"""
)
TEXT = words(
    "text textrm textbf textit textsf texttt textnormal textup textmd textsl textsc mathrm mbox hbox vbox operatorname"
)
# Commands whose arguments say nothing, with how many there are; and before the argument that is shown.
SILENT = {
    "color": 1, "tag": 1, "label": 1, "phantom": 1, "hphantom": 1, "vphantom": 1, "hspace": 1, "vspace": 1, "mspace": 1,
    "rule": 2,
}  # fmt: skip
COLOURED = {"textcolor": 1, "mathcolor": 1, "colorbox": 1, "fcolorbox": 2, "bbox": 0, "style": 1, "class": 1}
SIZES = words(
    """left right middle big Big bigg Bigg bigl bigr bigm Bigl Bigr Bigm biggl biggr biggm Biggl Biggr Biggm mleft
    mright"""
)
NOTHING = words(
    """displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits bf it sf tt cal sl em bfseries itshape
    rmfamily normalfont boldmath large Large LARGE huge Huge small normalsize tiny footnotesize scriptsize strut
    mathstrut null relax protect nonumber notag noindent centering par hfill hfil quad qquad enspace enskip thinspace
    medspace thickspace negthinspace allowbreak therefore"""
)
NAMES = {
    "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne",
    "simeq": "approx", "approxeq": "approx", "doteq": "approx", "rightarrow": "to", "implies": "Rightarrow",
    "dots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "cdots": "ldots", "varnothing": "emptyset",
    "smallsetminus": "setminus", "backslash": "setminus", "bmod": "mod", "ast": "cdot", "cdotp": "cdot",
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho",
    "bar": "overline", "leftarrow": "gets",
    **dict.fromkeys(("square", "Box", "qed", "qedsymbol", "qedhere", "checkmark", "bigstar"), "blacksquare"),
    **ALIASES,
}  # fmt: skip
CHARACTERS = {
    "lt": "<", "gt": ">", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "Vert": "\\|", "lVert": "\\|",
    "rVert": "\\|", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "colon": ":", "ratio": ":", "prime": "'", "coloneqq": "=", "imath": "i", "jmath": "j", "lg": "\\log_{10} ",
    **dict.fromkeys(("lor", "vee"), "\\text{or}"), **dict.fromkeys(("land", "wedge"), "\\text{and}"),
    "ohm": "\\Omega ", "percent": "\\%",
    **dict.fromkeys(("degree", "degrees", "textdegree"), "^{\\circ}"),
    **{letter: f"\\mathbb{{{letter}}}" for letter in "RZNQ"},
    **dict.fromkeys(("euro", "texteuro"), "\\text{EUR}"), **dict.fromkeys(("pounds", "textsterling"), "\\text{GBP}"),
    **dict.fromkeys(("textdollar", "$"), "\\text{USD}"), **dict.fromkeys(("yen", "textyen"), "\\text{CNY}"),
    **dict.fromkeys(("cent", "textcent"), "\\text{cents}"), "rupee": "\\text{INR}",
}  # fmt: skip
ALIGNED = words("aligned align align* alignat gathered gather gather* equation equation* split multline")
FRACTIONS = {
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "xfrac"), "frac"),
    **dict.fromkeys(("binom", "dbinom", "tbinom"), "binom"),
}
ACCENTS = words("dot overline vec hat tilde widehat widetilde overrightarrow")
