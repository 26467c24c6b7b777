"""Small invented sets in the exact layout and columns of the hub's: multiple choice, programs, AMC, DeepMath."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

GPQA = [
    {
        "Record ID": f"rec{number}",
        "Question": question,
        "Correct Answer": options[0],
        "Incorrect Answer 1": options[1],
        "Incorrect Answer 2": options[2],
        "Incorrect Answer 3": options[3],
        "Explanation": "By counting,\nit follows.",
        "Subdomain": "Arithmetic",
        "High-level domain": "Mathematics",
    }
    for number, (question, options) in enumerate(
        [
            ('Which of these, "all" told,\nis even?', ["4\n", "5", "7", "9"]),
            ("What is the fourth letter?", ["D", "A", "B", "C"]),
            ("Which weighs most?", ["a ton", "a gram", "a gram", "a pound"]),  # two wrong options are the same
            ("Which is first?", ["one", "One.", "two", "three"]),  # the right one twice
        ]
    )
]
MMLU_PRO = [
    {
        "question_id": 70 + number,
        "question": f"Which number follows {number}?",
        "options": [str(number + offset) for offset in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)[:count]],
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "math",
        "src": "invented",
    }
    for number, count in ((1, 10), (2, 10), (3, 7), (4, 3))
] + [
    {"question_id": 99, "question": "Without its answer?", "options": ["x", "y"], "answer": "K", "answer_index": 10,
     "cot_content": "", "category": "other", "src": "invented"},
]  # fmt: skip
HUMANEVAL_PLUS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef largest(numbers: List[int]) -> int:\n    """ The largest number.\n'
        '    >>> largest([1, 3, 2])\n    3\n    """\n',
        "canonical_solution": "\n    best = numbers[0]\n    for number in numbers:\n        best = max(best, number)\n"
        "    return best\n\n",
        "entry_point": "largest",
        "test": "import numpy as np\n\ndef assertion(out, exp, atol):\n    if isinstance(exp, float):\n"
        "        assert np.allclose(out, exp, atol=atol)\n    else:\n        assert out == exp, f'{out} != {exp}'\n\n"
        "def check(candidate):\n    inputs = [[[1, 3, 2]], [[-5]], [[2, 2]]]\n    results = [3, -5, 2]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "def half(x):\n    return x / 2\n\n\ndef quarter(x):\n    \"\"\"A quarter, by half.\"\"\"\n",
        "canonical_solution": "    return half(half(x))\n",
        "entry_point": "quarter",
        "test": "def check(candidate):\n    assert candidate(8) == 2\n",
    },
    {"task_id": "HumanEval/2", "prompt": "def nothing():\n    pass\n", "canonical_solution": "    pass\n",
     "entry_point": "nothing", "test": ""},
    {"task_id": "HumanEval/3", "prompt": "def unnamed():\n    pass\n", "canonical_solution": "    pass\n",
     "entry_point": "", "test": "def check(candidate):\n    pass\n"},
]  # fmt: skip
MBPP_PLUS = [
    {
        "task_id": 2,
        "code": "def helper(a):\n    return set(a)\n\ndef shared(a, b):\n    return tuple(helper(a) & helper(b))",
        "prompt": "Write a function to find the shared elements from the given two lists.",
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "test_imports": [],
        "test_list": [
            "assert set(shared((3, 4), (4, 5))) == set((4,))",
            "assert set(shared((1, 2), (5, 4))) == set()",
        ],
        "test": "inputs = [[(3, 4), (4, 5)], [(1, 2), (5, 4)]]\nresults = [(4,), ()]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assert set(shared(*inp)) == set(exp)\n",
    },
    {
        "task_id": 3,
        "code": "def other(n):\n    return n",
        "prompt": "Write a function whose examples call another one.",
        "source_file": "x",
        "test_imports": [],
        "test_list": ["assert unknown(3) == 3"],
        "test": "assert unknown(3) == 3",
    },
]
AMC_2023 = [
    {"id": number, "question": f"How many are {number} and {number}?", "answer": float(2 * number), "url": "https://x"}
    for number in range(1, 4)
]
DEEPMATH = [
    {
        "question": f"What is {number} squared?",
        "final_answer": str(number**2),
        "difficulty": difficulty,
        "topic": "Mathematics -> Algebra",
        **{f"r1_solution_{k}": f"It is {number} times {number}, so \\boxed{{{number**2}}}." for k in (1, 2, 3)},
    }
    for number, difficulty in enumerate([3.0, 3.0, 3.0, 3.0, 5.5, 5.5, 5.5, 8.0, 8.0, 10.0], start=2)
]
SETS: Mapping[str, tuple[str, Sequence[Row]]] = {  # name -> (file inside the hub's repository, rows)
    "gpqa_diamond": ("gpqa_diamond.csv", GPQA),
    "mmlu_pro": ("data/test-00000-of-00001.parquet", MMLU_PRO),
    "humaneval_plus": ("data/test-00000-of-00001-5973903632b82d40.parquet", HUMANEVAL_PLUS),
    "mbpp_plus": ("data/test-00000-of-00001-d5781c9c51e02795.parquet", MBPP_PLUS),
    "amc_2023": ("data/test-00000-of-00001.parquet", AMC_2023),
    "deepmath_103k": ("data/train-00000-of-00001.parquet", DEEPMATH),
}


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows in the format of the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_repository(folder: Path, name: str) -> Path:
    """A set's repository as it is downloaded from the hub."""
    where, rows = SETS[name]
    write_rows(folder / where, rows)
    if name == "gpqa_diamond":  # beside other subsets, which are other questions
        write_rows(folder / "gpqa_main.csv", [{**row, "Question": f"Main: {row['Question']}"} for row in rows])
        configs = "".join(
            f"- config_name: {subset}\n  data_files: {subset}.csv\n" for subset in ("gpqa_main", "gpqa_diamond")
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# GPQA\n")
    return folder
