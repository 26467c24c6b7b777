"""What the starter is pre-trained on, and the rows of its train, validation and probe sets.

Two prompt forms, those of every experiment (`recipes.common.teacher.prompts`), over problems that no data set contains:

* the problem alone, answered in a mixture of habits;
* the problem with a reference, all of it or a prefix and the answer.  The steps that the reference shows come out
  right; the others slip as the habit usually does.  The more is shown, the more often the response is careful.  The
  boxed answer is the reference's even where the response's own steps arrive elsewhere, as a model does that has been
  told the answer.  So a longer prefix makes a better teacher, by degrees.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.common.teacher.prompts import student_messages, teacher_messages
from recipes.starter import task
from recipes.starter.tokenizer import END, render, truncate_reference

DATA_SOURCE = "starter_arithmetic"
SPLITS = {"train": 4096, "val": 128, "probe": 64}

# Share of each habit without a reference, and with a complete one; in between, by linear interpolation.
STUDENT_HABITS = {"careful": 0.20, "revising": 0.25, "hasty": 0.55}
TEACHER_HABITS = {"careful": 0.85, "revising": 0.10, "hasty": 0.05}
# Drills, seen first, have 1 to this many steps and no slips: arithmetic is learned sooner so.
DRILL_STEPS = 4
# Probability per step of a slip, of noticing it, and of doubting a right step.
SLIP = {"careful": 0.02, "revising": 0.35, "hasty": 0.35}
NOTICE, DOUBT = 0.85, 0.05

PRIVILEGED_SHARE = 0.45
# Kinds of reference: the careful solution (cut or whole), a right response in another habit, the bare answer.
REFERENCE_KINDS = {"careful": 0.85, "sibling": 0.10, "answer": 0.05}
WHOLE_SHARE = 0.40  # of the careful references
KEEP_ANSWER = 0.97  # probability that the boxed answer is the reference's, whatever the steps say


@dataclass(frozen=True)
class Example:
    """One pre-training example: prompt ids, and response ids with the end token."""

    prompt: list[int]
    response: list[int]


def draw_splits(seed: int) -> dict[str, list[task.Chain]]:
    """Draw the problems of the three sets, all different, the numbers of steps in equal shares."""
    rng, seen, splits = random.Random(seed), set(), {}
    lengths = range(task.MIN_STEPS, task.MAX_STEPS + 1)
    for name, size in SPLITS.items():
        chains = []
        while len(chains) < size:
            chain = task.random_chain(rng, lengths[len(chains) % len(lengths)])
            if chain not in seen:
                seen.add(chain)
                chains.append(chain)
        rng.shuffle(chains)
        splits[name] = chains
    return splits


def row(chain: task.Chain, split: str, index: int) -> dict:
    """One row in the columns of verl's RLHFDataset, plus `problem`, `solution` and `answer`."""
    answer = str(chain.values()[-1])
    return {
        "data_source": DATA_SOURCE,
        "prompt": student_messages(chain.problem),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "problem": chain.problem,
        "solution": task.reference_solution(chain),
        "answer": answer,
        "extra_info": {"index": index, "split": split, "steps": chain.steps},
    }


def _pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _covered(prefix: str) -> int:
    """Number of whole steps in a reference prefix."""
    return sum(step.count("=") and step[-1].isdigit() for step in prefix.split(task.STEP_SEPARATOR))


def _privileged(tokenizer, chain: task.Chain, rng: random.Random, noise: float) -> tuple[str, str]:
    """A reference and a response to the prompt that shows it."""
    answer, exposure, covered = chain.values()[-1], 1.0, chain.steps
    kind = _pick(rng, REFERENCE_KINDS)
    if kind == "answer":
        reference, exposure, covered = rng.choice((str(answer), task.boxed(answer))), 0.0, 0
    elif kind == "sibling":
        reference = task.write_solution(chain, "hasty", rng, slip=0.0)
        if rng.random() < 0.5:
            reference = task.write_solution(chain, "revising", rng, slip=SLIP["revising"], notice=1.0, doubt=DOUBT)
    else:
        exposure = 1.0 if rng.random() < WHOLE_SHARE else rng.random()
        reference = truncate_reference(tokenizer, task.reference_solution(chain), exposure)
        prefix, boxed = reference[: reference.rindex("\\boxed")], reference[reference.rindex("\\boxed") :]
        covered = _covered(prefix)
        if exposure < 1.0 and rng.random() < 0.3:  # others may join prefix and answer by a blank line
            reference = prefix.rstrip() + task.STEP_SEPARATOR + boxed
    shares = {h: STUDENT_HABITS[h] + exposure * (TEACHER_HABITS[h] - STUDENT_HABITS[h]) for h in task.HABITS}
    habit = _pick(rng, shares)
    response = task.write_solution(
        chain,
        habit,
        rng,
        slip=noise * SLIP[habit],
        notice=NOTICE,
        doubt=DOUBT,
        covered=covered,
        answer=answer if rng.random() < KEEP_ANSWER else None,
    )
    return reference, response


def example(tokenizer, rng: random.Random, forbidden: set[task.Chain], *, drill: bool = False) -> Example:
    """Draw one pre-training example on a problem outside of `forbidden`; a `drill` is short and free of slips."""
    chain = None
    while chain is None or chain in forbidden:
        chain = task.random_chain(rng, rng.randint(1, DRILL_STEPS) if drill else None)
    noise = 0.0 if drill else 1.0
    if rng.random() < PRIVILEGED_SHARE:
        reference, response = _privileged(tokenizer, chain, rng, noise)
        messages = teacher_messages(chain.problem, reference)
    else:
        habit = _pick(rng, STUDENT_HABITS)
        response = task.write_solution(chain, habit, rng, slip=noise * SLIP[habit], notice=NOTICE, doubt=DOUBT)
        messages = student_messages(chain.problem)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return Example(render(tokenizer, messages), [*ids, tokenizer.convert_tokens_to_ids(END)])
