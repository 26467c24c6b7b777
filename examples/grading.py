"""Grading: right answers in other clothes, wrong ones that look right, and responses that would hang a grader.

    python examples/grading.py

`compute_score` is verl's reward function. Comparing formulas happens in a process of its own, which is ended where it
takes too long or too much memory: nothing that a model writes can stop a training step.
"""

from __future__ import annotations

import time

from rewards.math import compute_score

CASES = [
    (r"Half of it: \boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{x^2 - 1}", "(x-1)(x+1)"),
    (r"\boxed{\{3, 1, 2\}}", r"\{1, 2, 3\}"),
    (r"\boxed{(1, 2)}", "(2, 1)"),
    (r"First \boxed{7}, no: \boxed{8}", "7"),
    ("The answer is 7", "7"),
    (r"\boxed{9^{9^{9^{9}}}}", "1"),  # may not be computed
]


def main() -> None:
    for response, gold in CASES:
        began = time.perf_counter()
        said = compute_score("example", response, gold)
        seconds = time.perf_counter() - began
        print(f"{said['status']:<10} {said['score']:.0f}  {seconds:5.2f} s  gold {gold:<14} response {response}")
    mixed = compute_score(
        "example", r"\boxed{7}", "7", {"response_length": 90},
        overlong_weight=1.0, max_response_length=100, overlong_buffer=20,
    )  # fmt: skip
    print(f"with DAPO's soft punishment of the last 20 of 100 tokens: score {mixed['score']:.2f}")


if __name__ == "__main__":
    main()
