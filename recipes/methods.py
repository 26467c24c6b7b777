"""Lists the methods that there are: `python -m recipes.methods`; with `--markdown` as the table of the README.

Both are made of what each method says of itself in ``config/method/<name>.yaml``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from config import CONFIG_DIR
from recipes.common.method import About, shipped

BUNDLES = CONFIG_DIR / "method"
RECIPES = Path(__file__).resolve().parent


def recipe_of(name: str) -> str | None:
    """The folder below recipes/ that describes a method; None if there is none.

    It is the folder of the method's name, else the one of another method whose name this one's begins with
    (`dasd` for `dasd_raw`).
    """
    bundles = {path.stem for path in BUNDLES.glob("*.yaml")}
    folders = [path.parent.name for path in RECIPES.glob("*/README.md") if path.parent.name in bundles]
    fitting = [folder for folder in folders if name == folder or name.startswith(f"{folder}_")]
    return max(fitting, key=len, default=None)


def command(name: str) -> str:
    """The shortest command that trains with a method."""
    recipe = recipe_of(name)
    if recipe is None or not (RECIPES / recipe / "main.py").exists():
        return f"python -m recipes.entry method={name}"
    return f"python -m recipes.{recipe}.main" + ("" if recipe == name else f" method={name}")


def markdown() -> str:
    """The README's table as Markdown: method, command, what a token is trained with, paper."""
    rows = ["| method | command | trained with | paper |", "|---|---|---|---|"]
    for method in shipped():
        recipe = recipe_of(method.name)
        title = f"[{method.title}](recipes/{recipe}/README.md)" if recipe else method.title
        rows.append(f"| {title} | `{command(method.name)}` | {method.credit} | {_paper(method)} |")
    return "\n".join(rows)


def _paper(method: About) -> str:
    arxiv = method.paper.get("arxiv")
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "–"


def main() -> None:
    """Print the methods, one on each line, or with `--markdown` as a table."""
    if "--markdown" in sys.argv[1:]:
        print(markdown())
        return
    methods = shipped()
    width = max(len(method.name) for method in methods)
    for method in methods:
        print(f"{method.name:<{width}}  {method.description}")


if __name__ == "__main__":
    main()
