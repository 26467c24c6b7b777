"""`make notebook`: examples/tour.py, run, as examples/tour.ipynb with its pictures.

The script is in cells, `# %%` before code and `# %% [markdown]` before text, so that it is read, checked and run like
any other; the notebook is made of it and never edited.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "tour.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def cells(text: str) -> Iterator[tuple[str, str]]:
    """("code" or "markdown", source) of each cell of a script."""
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        if head.strip() == "[markdown]":
            yield "markdown", re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)
        else:
            yield "code", source.strip()


def page(text: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page of the site, and its pictures by the names that the page has for them.

    Args:
        text: the .ipynb.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"tour_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![]({name})")
            else:
                said = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"````text\n{said.rstrip()}\n````")
    return "\n\n".join(parts) + "\n", pictures


def main() -> None:
    """Run the script's cells in a kernel and write the notebook."""
    import nbformat
    from nbclient import NotebookClient

    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[make[kind](source, id=f"cell-{n}") for n, (kind, source) in enumerate(cells(SCRIPT.read_text("utf-8")))],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(SCRIPT.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ with every run
        if cell.cell_type == "code":  # warnings of this machine's packages, with its paths
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
