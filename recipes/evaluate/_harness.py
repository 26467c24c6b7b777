"""Grades responses with an established harness; a script for the Python that has it (`recipes.evaluate.crosscheck`).

Standard library and the harness only.  Reads JSON lines ``{text, gold}``, writes for each ``{right, answer, error}``.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Verdict = tuple[bool, "str | None"]  # right, and the answer that was compared
Grade = Callable[[str, str], Verdict]


def lm_eval_math() -> Grade:
    """The last box, else what stands between dollars, as normalised text: lm-eval's AIME tasks."""
    from lm_eval.tasks.aime import utils  # type: ignore[import-not-found]

    def grade(text: str, gold: str) -> Verdict:
        boxed = utils.last_boxed_only_string(text)
        try:
            answer = None if boxed is None else utils.remove_boxed(boxed)
        except (AssertionError, IndexError):
            answer = boxed
        return bool(utils.process_results({"answer": gold}, [text])["exact_match"]), answer

    return grade


def lm_eval_choice() -> Grade:
    """The first letter after "answer is", by the pattern of lm-eval's MMLU-Pro tasks."""
    import lm_eval  # type: ignore[import-not-found]
    from lm_eval.filters.extraction import RegexFilter  # type: ignore[import-not-found]

    template = Path(lm_eval.__file__).parent / "tasks" / "mmlu_pro" / "_default_template_yaml"
    found = re.search(r"^\s*regex_pattern: '(.*)'$", template.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{template} has no regex_pattern")
    extract = RegexFilter(found[1])

    def grade(text: str, gold: str) -> Verdict:
        ((answer,),) = extract.apply([[text]], [{}])
        return answer == gold, None if answer == extract.fallback else answer

    return grade


def inspect_ai_math() -> Grade:
    """inspect-ai's `math` scorer: candidates from boxes, dollars and the last line, compared by sympy."""
    from inspect_ai.model import ModelOutput  # type: ignore[import-not-found]
    from inspect_ai.scorer import Target, math  # type: ignore[import-not-found]
    from inspect_ai.solver import TaskState  # type: ignore[import-not-found]

    score, loop = math(), asyncio.new_event_loop()

    def grade(text: str, gold: str) -> Verdict:
        output = ModelOutput.from_content("none", text)
        state = TaskState(model="none", sample_id=0, epoch=0, input="", messages=[], output=output)
        found = loop.run_until_complete(score(state, Target(gold)))
        return found.value == "C", found.answer

    return grade


GRADES: dict[tuple[str, str], Callable[[], Grade]] = {
    ("lm_eval", "math"): lm_eval_math,
    ("lm_eval", "choice"): lm_eval_choice,
    ("inspect_ai", "math"): inspect_ai_math,
}


def main() -> None:
    harness, grader = sys.argv[1:]
    grade = GRADES[harness, grader]()
    out = sys.stdout
    sys.stdout = sys.stderr  # harnesses print
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        item: dict[str, Any] = json.loads(line)
        try:
            right, answer = grade(item["text"], item["gold"])
            reply = {"right": right, "answer": answer, "error": None}
        except Exception as error:  # a harness fails on hostile text: one verdict, not the end
            reply = {"right": False, "answer": None, "error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
