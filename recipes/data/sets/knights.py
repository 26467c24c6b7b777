"""Knights & Knaves from a seed: puzzles with exactly one solution, each with a derivation of it.

Everybody is either a knight, whose statement is true, or a knave, whose statement is false (Smullyan; as a benchmark of
reasoning: Xie et al., arXiv 2410.23123). With at most 11 people all 2^n assignments of roles can be looked at. A
proposition is therefore held as its truth table: an integer whose bit a says whether the proposition is true under
assignment a, in which bit i of a says whether person i is a knight. A puzzle is kept if its statements leave exactly
one assignment.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from recipes.data.cells import cell
from recipes.data.readers import DataError
from recipes.data.sets.fields import Fields
from recipes.data.spec import DatasetSpec
from rewards.knights import ROLES, answer_text

MIN_PEOPLE, MAX_PEOPLE = 3, 11
NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hope", "Ian", "June", "Kai", "Lena", "Max", "Nora", "Otto",
    "Pia", "Quinn", "Rosa", "Sam", "Tess", "Uma", "Vera", "Will", "Yara", "Zeno",
)  # fmt: skip
KINDS = ("is", "and", "or", "if", "same", "differ")
MAX_DEPTH = 4  # of suppositions within suppositions


@dataclass(frozen=True)
class Statement:
    """What somebody says of one or two others.

    Attributes:
        kind: one of `KINDS`; "same" and "differ" compare two people, the others name roles.
        people: numbers of those that it is about, from 0.
        roles: for each of them whether they are said to be a knight; () for "same" and "differ".
    """

    kind: str
    people: tuple[int, ...]
    roles: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Puzzle:
    """A puzzle with its solution.

    Attributes:
        names: of the people, by number.
        statements: what each person says.
        roles: for each person whether they are a knight.
    """

    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    roles: tuple[bool, ...]


@lru_cache(maxsize=16)
def _knights(count: int) -> tuple[int, tuple[int, ...]]:
    """(table of what is always true, for each person the table of "is a knight")."""
    size = 1 << count
    tables = tuple(sum(1 << a for a in range(size) if a >> person & 1) for person in range(count))
    return (1 << size) - 1, tables


def truth_table(statement: Statement, count: int) -> int:
    """The truth table of a statement.

    Args:
        statement: what is said.
        count: number of people in the puzzle.

    Returns:
        An integer of 2^count bits; see the module's text.
    """
    everything, knight = _knights(count)
    if statement.kind in ("same", "differ"):
        differ = knight[statement.people[0]] ^ knight[statement.people[1]]
        return differ if statement.kind == "differ" else everything ^ differ
    parts = [
        knight[person] if role else everything ^ knight[person]
        for person, role in zip(statement.people, statement.roles, strict=True)
    ]
    if statement.kind == "is":
        return parts[0]
    if statement.kind == "and":
        return parts[0] & parts[1]
    if statement.kind == "or":
        return parts[0] | parts[1]
    return (everything ^ parts[0]) | parts[1]  # if


def solutions(statements: Sequence[Statement]) -> int:
    """The table of the assignments under which the knights' statements, and only these, are true.

    Args:
        statements: what each person says, by number.

    Returns:
        An integer of 2^n bits for n people; each bit that is set is a solution.
    """
    everything, knight = _knights(len(statements))
    left = everything
    for person, statement in enumerate(statements):
        left &= everything ^ knight[person] ^ truth_table(statement, len(statements))
    return left


def draw_statement(rng: random.Random, speaker: int, count: int) -> Statement:
    """A random statement about others than the speaker.

    Args:
        rng: the source of chance, which moves on.
        speaker: the number of who says it.
        count: number of people in the puzzle.
    """
    kind = rng.choice(KINDS)
    others = [person for person in range(count) if person != speaker]
    people = tuple(rng.sample(others, 1 if kind == "is" else 2))
    if kind in ("same", "differ"):
        return Statement(kind, people)
    return Statement(kind, people, tuple(rng.random() < 0.5 for _ in people))


def draw_puzzle(rng: random.Random, count: int) -> Puzzle:
    """A random puzzle with exactly one solution.

    Args:
        rng: the source of chance, which moves on.
        count: number of people, `MIN_PEOPLE` to `MAX_PEOPLE`.
    """
    while True:
        statements = tuple(draw_statement(rng, speaker, count) for speaker in range(count))
        left = solutions(statements)
        if left.bit_count() == 1:
            assignment = left.bit_length() - 1
            roles = tuple(bool(assignment >> person & 1) for person in range(count))
            return Puzzle(tuple(rng.sample(NAMES, count)), statements, roles)


# ---------------------------------------------------------------------------------------------------------------- words


def _is_a(name: str, role: bool) -> str:
    return f"{name} is a {ROLES[0] if role else ROLES[1]}"


def statement_text(statement: Statement, names: Sequence[str]) -> str:
    """A statement in words, without a full stop.

    Args:
        statement: what is said.
        names: of all people of the puzzle, by number.
    """
    if statement.kind in ("same", "differ"):
        one, other = (names[person] for person in statement.people)
        if statement.kind == "same":
            return f"{one} and {other} are of the same kind"
        return f"exactly one of {one} and {other} is a knight"
    parts = [_is_a(names[person], role) for person, role in zip(statement.people, statement.roles, strict=True)]
    if statement.kind == "is":
        return parts[0]
    if statement.kind == "if":
        return f"if {parts[0]}, then {parts[1]}"
    return f" {statement.kind} ".join(parts)


def problem_text(puzzle: Puzzle) -> str:
    """The puzzle as it is asked, with the form of the answer."""
    names = puzzle.names
    said = " ".join(
        f'{name} says: "{(text := statement_text(statement, names))[0].upper()}{text[1:]}."'
        for name, statement in zip(names, puzzle.statements, strict=True)
    )
    return (
        "On an island everybody is either a knight, whose statements are all true, or a knave, whose statements are "
        f"all false. You meet {', '.join(names[:-1])} and {names[-1]}. {said} Who is a knight, and who is a knave? "
        'State it of everybody as a list of the form "Name: knight, Name: knave".'
    )


# ----------------------------------------------------------------------------------------------------------- derivation


@dataclass(frozen=True)
class Conclusion:
    """One step of a derivation.

    Attributes:
        given: (person, is a knight) of all that is known or supposed before the step.
        speaker: the person whose words are used.
        person: whose role they decide; None if they lead to a contradiction.
        role: whether that person is a knight.
    """

    given: tuple[tuple[int, bool], ...]
    speaker: int
    person: int | None
    role: bool


class Derivation:
    """The roles of a puzzle, found one after the other, and the sentences that say why.

    Attributes:
        puzzle: what is derived.
        count: number of people.
        everything: the table of what is always true.
        knight: for each person the table of "is a knight".
        tables: for each person the table of their statement.
        steps: the conclusions that the sentences claim, so that a checker can verify them.
        refuted: the suppositions (given, person, role) that the sentences led to a contradiction, likewise.
    """

    def __init__(self, puzzle: Puzzle):
        self.puzzle = puzzle
        self.count = len(puzzle.names)
        self.everything, self.knight = _knights(self.count)
        self.tables = [truth_table(statement, self.count) for statement in puzzle.statements]
        self.steps: list[Conclusion] = []
        self.refuted: list[tuple[tuple[tuple[int, bool], ...], int, bool]] = []

    def _restricted(self, known: Mapping[int, bool], speaker: int) -> int:
        """Assignments that agree with what is known and with one speaker's words."""
        left = self.everything ^ self.knight[speaker] ^ self.tables[speaker]
        for person, role in known.items():
            left &= self.knight[person] if role else self.everything ^ self.knight[person]
        return left

    def _reason(self, known: Mapping[int, bool], speaker: int, person: int | None) -> str:
        """Why one speaker's words decide about a person, up to the conclusion."""
        name = self.puzzle.names[speaker]
        if person == speaker:
            return f"with that, what {name} says is {'true' if known_truth(self, known, speaker) else 'false'}, so "
        if speaker in known:
            return f"{_is_a(name, known[speaker])}, so what {name} says is {'true' if known[speaker] else 'false'}: "
        return f"whatever {name} is, what {name} says means that "

    def conclude(self, known: dict[int, bool]) -> tuple[list[str], bool]:
        """Add to ``known`` what single statements imply.

        Args:
            known: person -> whether they are a knight; extended in place.

        Returns:
            (sentences, whether they ended in a contradiction).
        """
        sentences: list[str] = []
        names = self.puzzle.names
        moved = True
        while moved:
            moved = False
            for speaker in range(self.count):
                given = tuple(known.items())
                left = self._restricted(known, speaker)
                if left == 0:
                    self.steps.append(Conclusion(given, speaker, None, False))
                    must = "true" if known.get(speaker, True) else "false"
                    return [*sentences, f"but then what {names[speaker]} says cannot be {must}, a contradiction"], True
                involved = {speaker, *self.puzzle.statements[speaker].people} - known.keys()
                for person in sorted(involved):
                    is_knight = left & self.knight[person]
                    if is_knight and left & ~is_knight:
                        continue
                    role = bool(is_knight)
                    self.steps.append(Conclusion(tuple(known.items()), speaker, person, role))
                    sentences.append(self._reason(known, speaker, person) + _is_a(names[person], role))
                    known[person] = role
                    moved = True
                    break  # the next sentence stands on this one
                if moved:
                    break
        return sentences, False

    def refute(self, known: Mapping[int, bool], person: int, role: bool, depth: int) -> list[str] | None:
        """Lead a supposition to a contradiction.

        Args:
            known: person -> role that is known or supposed already.
            person: of whom something is supposed.
            role: the supposed role; True for a knight.
            depth: how many suppositions may stand within each other, at least 1.

        Returns:
            The sentences; None if this depth does not suffice.
        """
        before = len(self.steps), len(self.refuted)
        supposed = {**known, person: role}
        sentences, contradiction = self.conclude(supposed)
        while not contradiction:
            inner = self._best_refutation(supposed, depth - 1, either=True) if depth > 1 else None
            if inner is None:
                del self.steps[before[0] :], self.refuted[before[1] :]
                return None
            other, wrong, found = inner
            sentences.append(f"suppose further that {_is_a(self.puzzle.names[other], wrong)}")
            sentences += [*found, f"so {_is_a(self.puzzle.names[other], not wrong)}"]
            supposed[other] = not wrong
            more, contradiction = self.conclude(supposed)
            sentences += more
        self.refuted.append((tuple(known.items()), person, role))
        return sentences

    def _best_refutation(
        self, known: Mapping[int, bool], depth: int, either: bool
    ) -> tuple[int, bool, list[str]] | None:
        """(person, supposed role, sentences) of the shortest refutation; of wrong roles, or with ``either`` of any."""
        best: tuple[int, bool, list[str]] | None = None
        for person in range(self.count):
            if person in known:
                continue
            for role in (True, False) if either else (not self.puzzle.roles[person],):
                marks = len(self.steps), len(self.refuted)
                found = self.refute(known, person, role, depth)
                del self.steps[marks[0] :], self.refuted[marks[1] :]
                if found is not None and (best is None or len(found) < len(best[2])):
                    best = person, role, found
        if best is not None:
            self.refute(known, best[0], best[1], depth)  # once more, for the record of its steps
        return best

    def write(self) -> str:
        """The derivation in paragraphs, and the boxed answer.

        Raises:
            ValueError: if suppositions nested `MAX_DEPTH` deep do not suffice.
        """
        names, known, paragraphs = self.puzzle.names, dict[int, bool](), []
        sentences, _ = self.conclude(known)
        paragraphs += _paragraph(sentences)
        while len(known) < self.count:
            for depth in range(1, MAX_DEPTH + 1):
                found = self._best_refutation(known, depth, either=False)
                if found is not None:
                    break
            else:
                raise ValueError(f"no derivation of depth {MAX_DEPTH}")
            person, wrong, why = found
            first = f"suppose that {_is_a(names[person], wrong)}"
            paragraphs += _paragraph([first, *why])
            known[person] = not wrong
            sentences, _ = self.conclude(known)
            paragraphs += _paragraph([f"so {_is_a(names[person], not wrong)}", *sentences])
        roles = {name: ROLES[0] if known[person] else ROLES[1] for person, name in enumerate(names)}
        return "\n\n".join([*paragraphs, f"\\boxed{{{answer_text(roles)}}}"])


def known_truth(derivation: Derivation, known: Mapping[int, bool], speaker: int) -> bool:
    """Whether what a speaker says is true, given roles that decide it.

    Args:
        derivation: of the puzzle.
        known: person -> whether they are a knight.
        speaker: whose words are judged.
    """
    left = derivation._restricted(known, speaker)
    return bool(left & derivation.tables[speaker])


def _paragraph(sentences: Sequence[str]) -> list[str]:
    return [" ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)] if sentences else []


# ------------------------------------------------------------------------------------------------------------ the set


def generate(size: int, people: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a set: every number of people equally often, all puzzles different.

    Args:
        size: number of puzzles, at most 2000 for each number of people.
        people: least and greatest number of people, 3 to 11.
        seed: the same seed gives the same puzzles.

    Yields:
        Rows with ``problem``, ``answer``, ``solution``, ``people``.

    Raises:
        DataError: if an argument is of a wrong type or out of its range.
    """
    pair = isinstance(people, Sequence) and len(people) == 2 and all(isinstance(count, int) for count in people)
    if not pair or not MIN_PEOPLE <= people[0] <= people[1] <= MAX_PEOPLE:
        raise DataError(f"dataset.generate.people={people}: must be [least, greatest] from 3 to 11")
    if not isinstance(size, int) or size < 1:
        raise DataError(f"dataset.generate.size={size}: must be a whole number, at least 1")
    if not isinstance(seed, int):
        raise DataError(f"dataset.generate.seed={seed}: must be a whole number")
    rng, seen = random.Random(seed), set()
    counts = range(people[0], people[1] + 1)
    if size > 2000 * len(counts):
        raise DataError(
            f"dataset.generate.size={size}: at most {2000 * len(counts)} for {len(counts)} numbers of people"
        )
    made = 0
    while made < size:
        puzzle = draw_puzzle(rng, counts[made % len(counts)])
        if puzzle.statements in seen:
            continue
        seen.add(puzzle.statements)
        made += 1
        roles = {name: ROLES[0] if role else ROLES[1] for name, role in zip(puzzle.names, puzzle.roles, strict=True)}
        yield {
            "problem": problem_text(puzzle),
            "answer": answer_text(roles),
            "solution": Derivation(puzzle).write(),
            "people": len(puzzle.names),
        }


def read(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """A row of a generated set, or of a file that has the same columns.

    Args:
        row: column to value.
        spec: which columns hold problem, answer and solution.
        seed: not used; `read_fields` calls every reader alike.
    """
    answer = cell(row, spec.answer).strip()
    return Fields(
        problem=cell(row, spec.problem).strip(),
        answer=answer,
        shown=answer,
        solution=cell(row, spec.solution).strip(),
    )
