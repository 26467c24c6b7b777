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
from recipes.starter.worlds import WORLDS, World

DATA_SOURCE = "starter_arithmetic"
SPLITS = {"train": 4096, "val": 128, "probe": 64}

PRIVILEGED_SHARE = 0.45
# Kinds of reference: the careful solution (cut or whole), a right response in another habit, the bare answer.
REFERENCE_KINDS = {"careful": 0.85, "sibling": 0.10, "answer": 0.05}
WHOLE_SHARE = 0.40  # of the careful references
KEEP_ANSWER = 0.97  # probability that the boxed answer is the reference's, whatever the steps say


@dataclass(frozen=True)
class Example:
    """One pre-training example: prompt ids, response ids with the end token, and the weight of the first of them."""

    prompt: list[int]
    response: list[int]
    weight: float = 1.0


def draw_splits(world: World, seed: int | None = None) -> dict[str, list[task.Chain]]:
    """Draw the problems of the three sets, all different, the numbers of steps in equal shares; `seed`: the world's."""
    rng, seen, splits = random.Random(world.seed if seed is None else seed), reserved(world), {}
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


def reserved(world: World) -> set[task.Chain]:
    """The problems of the worlds that this one is apart from."""
    others = (draw_splits(WORLDS[name]) for name in world.apart_from)
    return {chain for splits in others for chains in splits.values() for chain in chains}


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


def _worked_out(shares: dict[str, float]) -> dict[str, float]:
    return {habit: share for habit, share in shares.items() if habit != "direct"}


def _covered(prefix: str) -> int:
    """Number of whole steps in a reference prefix."""
    return sum(step.count("=") and step[-1].isdigit() for step in prefix.split(task.STEP_SEPARATOR))


def _reference(tokenizer, chain: task.Chain, rng: random.Random, world: World) -> tuple[str, float, int]:
    """A reference, the share of its reasoning that it shows, and the number of whole steps."""
    answer, kind = chain.values()[-1], _pick(rng, REFERENCE_KINDS)
    if kind == "answer":
        return rng.choice((str(answer), task.boxed(answer))), 0.0, 0
    if kind == "sibling":
        hasty = task.write_solution(chain, "hasty", rng, slip=0.0) if "hasty" in world.student else None
        if hasty is not None and rng.random() >= 0.5:
            return hasty, 1.0, chain.steps
        revising = task.write_solution(
            chain, "revising", rng, slip=world.slip["revising"], notice=1.0, doubt=world.doubt
        )
        return revising, 1.0, chain.steps
    exposure = 1.0 if rng.random() < WHOLE_SHARE else rng.random()
    reference = truncate_reference(tokenizer, task.reference_solution(chain), exposure)
    prefix, boxed = reference[: reference.rindex("\\boxed")], reference[reference.rindex("\\boxed") :]
    if exposure < 1.0 and rng.random() < 0.3:  # others may join prefix and answer by a blank line
        reference = prefix.rstrip() + task.STEP_SEPARATOR + boxed
    return reference, exposure, _covered(prefix)


def example(tokenizer, rng: random.Random, forbidden: set[task.Chain], world: World, *, drill: bool = False) -> Example:
    """Draw one pre-training example on a problem outside of `forbidden`; a `drill` is worked out, no slip stays."""
    chain = None
    while chain is None or chain in forbidden:
        chain = task.random_chain(rng, rng.randint(1, world.drill_steps) if drill else None)
    exposure, covered, messages = None, 0, student_messages(chain.problem)
    if rng.random() < PRIVILEGED_SHARE:
        reference, exposure, covered = _reference(tokenizer, chain, rng, world)
        messages = teacher_messages(chain.problem, reference)
    shares, weight = world.shares(exposure), 1.0
    if drill:
        shares = _worked_out(shares)
    elif world.balanced:
        direct = rng.random() < 0.5
        weight = 2 * (shares["direct"] if direct else 1 - shares["direct"])
        shares = {"direct": 1.0} if direct else _worked_out(shares)
    habit = _pick(rng, shares)
    slip = world.slip.get(habit, 0.0)
    if drill:
        slip = world.drill_slip if habit == "revising" else 0.0
    response = task.write_solution(
        chain,
        habit,
        rng,
        slip=slip,
        notice=1.0 if drill else world.notice,
        doubt=world.doubt,
        covered=covered,
        answer=chain.values()[-1] if exposure is not None and rng.random() < KEEP_ANSWER else None,
    )
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return Example(render(tokenizer, messages), [*ids, tokenizer.convert_tokens_to_ids(END)], weight)
