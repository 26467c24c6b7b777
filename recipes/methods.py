"""Lists the methods that there are: `python -m recipes.methods`; with `--markdown` as the table of the README.

Both are made of what each method says of itself in ``config/method/<name>.yaml``, and of what that makes a run do. What
a step costs is measured, by `benchmarks.pace --methods all --no-trl --no-validation --json recipes/step_cost.json`.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from config import CONFIG_DIR
from recipes.command_line import show
from recipes.common.method import About, Method, read, shipped
from recipes.common.teacher.contexts import FROM_GROUP, OF_RESPONSES

BUNDLES = CONFIG_DIR / "method"
RECIPES = Path(__file__).resolve().parent
COSTS = RECIPES / "step_cost.json"


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


def needs(method: Method) -> str:
    """What a method takes beyond the problem and the student's own passes, for people.

    Args:
        method: under the configuration that is asked about.

    Returns:
        What data it needs, then what the teacher does; "–" where both are nothing.
    """
    shown = set(method.contexts.named) if method.uses_teacher else set()
    data = ["reward"] if method.compares_groups or shown & set(OF_RESPONSES) else []
    if method.trains_references or method.truncates:
        data.append("worked solution")
    elif shown & {"solution", "answer"}:
        data.append("reference")
    if shown & set(FROM_GROUP):
        data.append("right and wrong siblings" if "wrong_sibling" in shown else "a right sibling")
    passes = []
    if method.scores_with_teacher:
        counts = {"wrong_sibling": method.contexts.wrong_siblings}
        teachers = sum(counts.get(kind, 1) for kind in method.contexts.kinds)
        passes.append("the teacher's scores" if teachers == 1 else f"scores under up to {teachers} prompts")
    if method.loss.active:
        passes.append("the teacher in the update")
    if method.teacher_copy:
        passes.append("weights of its own")
    if method.controller and method.uses_teacher:
        passes.append("a probe")
    return "; ".join(", ".join(part) for part in (data, passes) if part) or "–"


def cost(name: str) -> str:
    """Wall seconds of a method's step on the starter, in those of GRPO's step in the same run of `benchmarks.pace`.

    Args:
        name: of the method.

    Returns:
        The ratio with one decimal; "–" for a method that was not measured.
    """
    measured = _costs()
    return f"{measured[name]['step'] / measured['grpo']['step']:.1f}" if name in measured else "–"


@functools.cache
def _costs() -> dict[str, dict[str, float]]:
    return json.loads(COSTS.read_text())


def markdown() -> str:
    """The README's table as Markdown: method, command, what a token is trained with, what it needs and costs, paper."""
    from hydra import compose, initialize_config_dir

    rows = ["| method | command | trained with | needs | step × GRPO | paper |", "|---|---|---|---|---|---|"]
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        for method in shipped():
            recipe = recipe_of(method.name)
            title = f"[{method.title}](recipes/{recipe}/README.md)" if recipe else method.title
            needed = needs(read(compose("train", [f"method={method.name}"])))
            cells = [title, f"`{command(method.name)}`", method.credit, needed, cost(method.name), _paper(method)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _paper(method: About) -> str:
    arxiv = method.paper.get("arxiv")
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "–"


def main() -> None:
    """Print the methods, one on each line, or with `--markdown` as a table."""
    if "--markdown" in sys.argv[1:]:
        show(markdown())
        return
    methods = shipped()
    width = max(len(method.name) for method in methods)
    show("\n".join(f"{method.name:<{width}}  {method.description}" for method in methods))


if __name__ == "__main__":
    main()
