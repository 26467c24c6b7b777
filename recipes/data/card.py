"""README.md of a prepared dataset: what the folder holds, what was left out, and how it was made."""

from __future__ import annotations

import json
from typing import Any


def readme_text(card: dict[str, Any]) -> str:
    """README.md of a prepared dataset as Markdown.

    Args:
        card: the content of `card.json`, which lies beside the README and says the same, with the hashes of the files.
    """
    made_from = card["made_from"]
    terms = "" if "generator" in made_from["input"] else "; the terms of use are those of the original"
    lines = [
        f"# {card['name']}",
        "",
        f"Made {_origin(made_from)} by `python -m recipes.data.prepare`. Hashes of the files, and everything below, "
        f"are in `card.json`{terms}.",
        *(["", f"Published hash: {card['published']}."] if card.get("published") else []),
        "",
        "## Counts",
        "",
        "| what | number |",
        "| --- | --- |",
        *(f"| {what} | {number} |" for what, number in card["counts"].items()),
        "",
        "## Columns",
        "",
        "`data_source`, `prompt` (chat), `ability`, `reward_model.ground_truth`, `extra_info` as verl reads them; "
        "`problem`, `solution` (empty where the set has none) and `answer` for the privileged prompt.",
        "",
        "The prompt:",
        "",
        "```",
        made_from["prompt"][-1]["content"],
        "```",
    ]
    overlap = card["contamination"]
    if overlap["sets"] or overlap["not checked, since not prepared"]:
        rule = made_from["contamination"]
        done = "left out" if rule["remove"] else "still in the files"
        lines += [
            "",
            "## Overlap with evaluation sets",
            "",
            f"A copy contains at least {rule['min_share']:.0%} of an evaluation problem's word {rule['ngram']}-grams; "
            f"copies are {done}.",
            "",
            "| set | items sharing any n-gram | copies |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {report['sharing an n-gram']} | {len(report['copies'])} |"
                for name, report in overlap["sets"].items()
            ),
            *(f"| {name} | not prepared | not checked |" for name in overlap["not checked, since not prepared"]),
        ]
    lines += ["", "## Settings", "", "```json", json.dumps(made_from["settings"], indent=2), "```", ""]
    return "\n".join(lines)


def _origin(made_from: dict[str, Any]) -> str:
    """The hub's name of a set, the local files that it was read from, or both; or what it was generated with."""
    if "generator" in made_from["input"]:
        return f"from nothing, with `dataset.generate={json.dumps(made_from['dataset']['generate'])}`,"
    dataset, files = made_from["dataset"], made_from["input"].get("files")
    hub = f"from `{dataset['hub']}` (split `{dataset['split']}`)" if dataset["hub"] else ""
    if not files:
        return hub
    listed = ", ".join(f"`{name}` (SHA-256 {digest[:12]}…)" for name, digest in files.items())
    local = f"the local file{'s' * (len(files) > 1)} {listed}"
    return f"{hub}, read from {local}," if hub else f"from {local}"
