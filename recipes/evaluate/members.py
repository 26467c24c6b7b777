"""The models of an evaluation: where each is, what it is shown, and what it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from recipes.common.checks.errors import SettingsError
from recipes.common.models import Located, fingerprint, load_tokenizer, locate
from recipes.evaluate import server
from recipes.evaluate.checkpoints import chosen_models
from recipes.evaluate.teacher import Privileged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Member:
    """One model of an evaluation.  Members with the same ``label`` are seeds of one method.

    Attributes:
        fingerprint: of its weights, and of what it is shown beside the problem.
        tokenizer: None where the model is a server's, or is no longer there.
        run: label of the run whose checkpoint it is, where its checkpoints make a curve.
        privileged: what the teacher is shown; None for the student.
        student: a teacher's label without what it is shown.
    """

    label: str
    located: Located
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase | None
    run: str | None = None
    privileged: Privileged | None = None
    student: str | None = None

    @property
    def there(self) -> bool:
        """Whether the weights are still where they were found."""
        return self.located.kind in ("hub", server.KIND) or Path(self.located.path).exists()


def local_members(cfg: DictConfig) -> tuple[list[Member], list[str]]:
    """Find the models of ``model=``.

    A checkpoint of a run that cannot be used is left out and said, while others of its run can.

    Args:
        cfg: the evaluation's.

    Returns:
        The models, still without fingerprints, and sentences about how they were chosen.

    Raises:
        SettingsError: with every model that is not there or not complete.
    """
    chosen, notes = chosen_models(named_models(cfg.model), cfg.checkpoints)
    members: list[Member] = []
    wrong: list[str] = []
    broken: dict[str, list[str]] = {}
    for model in chosen:
        try:
            located = locate(model.name, cfg.base)
            members.append(Member(model.label, located, "", load_tokenizer(located, cfg.tokenizer), model.run))
        except SettingsError as error:
            if model.run is None:
                wrong += error.problems
            else:
                broken.setdefault(model.run, []).extend(error.problems)
    for run, said in broken.items():
        usable = any(member.run == run for member in members)
        (notes if usable else wrong).extend(f"{text}; left out" if usable else text for text in said)
    if wrong:
        raise SettingsError(wrong)
    return members, notes


def server_members(cfg: DictConfig) -> tuple[list[Member], list[str]]:
    """Take the models of ``model=`` for names at a server, and ask it for them.

    Args:
        cfg: the evaluation's.

    Returns:
        The models, still without fingerprints, and no sentences.

    Raises:
        SettingsError: if the server cannot be asked, or does not serve them, or an option needs a model's files.
    """
    options = server.ServerOptions.of(cfg)
    names = named_models(cfg.model)
    wrong = list(server.option_problems(options))
    if cfg.checkpoints != "last":
        wrong.append(f"checkpoints={cfg.checkpoints} with engine={server.ENGINE}: a server has no checkpoints")
    if cfg.teacher.context == "solution" and any(v != 1 for v in cfg.teacher.exposures) and not cfg.tokenizer:
        wrong.append("teacher.exposures below 1 count tokens: give the served model's tokenizer with tokenizer=")
    if not wrong:
        wrong = list(server.model_problems(options, [name for _, name in names]))
    if wrong:
        raise SettingsError(wrong)
    found = []
    for label, name in names:
        located = Located(name, server.KIND, f"{options.base_url} {name}", cfg.tokenizer or "")
        found.append(Member(label, located, "", load_tokenizer(located, cfg.tokenizer) if cfg.tokenizer else None))
    return found, []


def with_fingerprints(members: list[Member]) -> tuple[list[Member], list[str]]:
    """Read the fingerprints of the weights.

    Args:
        members: as `local_members` or `server_members` found them.

    Returns:
        The members with fingerprints, and a sentence for each checkpoint that was left out: because it has the weights
        of an earlier one of its run, or vanished while it was read.

    Raises:
        SettingsError: if a model that is no checkpoint on a curve vanished.
    """
    found: list[Member] = []
    notes: list[str] = []
    for member in members:
        try:
            member = replace(member, fingerprint=fingerprint(member.located))
        except FileNotFoundError as error:
            if member.run is None:
                raise SettingsError([f"{member.located}: {error.filename} vanished while it was read"]) from error
            notes.append(f"{member.label} vanished while it was read ({error.filename}); left out")
            continue
        twin = next((m for m in found if m.fingerprint == member.fingerprint), None)
        if twin is not None and member.run is not None and twin.run == member.run:
            notes.append(f"{member.label} has the same weights as {twin.label}; left out")
            continue
        found.append(member)
    return found, notes


def vanished(members: list[Member], before: Mapping[str, Any] | None) -> Iterator[Member]:
    """Recall checkpoints that an earlier start of this evaluation asked and that are no longer there.

    Args:
        members: those that are there.
        before: what the directory was begun with (`plan.read_settings`); None for a new one.

    Yields:
        Such checkpoints of the same runs, whose results stay in the summary.
    """
    runs = {member.run for member in members} - {None}
    for mark, model in (before or {"models": {}})["models"].items():
        weights = mark.partition("+")[0]
        known = any(member.fingerprint == weights for member in members)
        if model.get("run") in runs and not known and not Path(model["name"]).exists() and weights == mark:
            located = Located(model["name"], model["kind"], model["name"], "", model["step"])
            yield Member(model["label"], located, mark, None, model["run"])


def with_teachers(members: list[Member], teacher: DictConfig) -> Iterator[Member]:
    """Put the privileged teachers beside their students.

    Args:
        members: the students.
        teacher: the node ``teacher`` of the configuration.

    Yields:
        Each student, followed by itself as the teacher at each exposure, if one is asked for.
    """
    for member in members:
        yield member
        for exposure in teacher.exposures if teacher.context is not None else ():
            shown = Privileged(teacher.context, float(exposure))
            base = member.run or member.label
            yield replace(
                member,
                label=f"{base} {shown.title}" + member.label.removeprefix(base),
                fingerprint=member.fingerprint + shown.mark,
                run=None if member.run is None else f"{base} {shown.title}",
                privileged=shown,
                student=member.label,
            )


def named_models(model: Any) -> list[tuple[str, str]]:
    """(label, name) of every model of ``model=``: a text, a list, or a mapping of labels to texts or lists.

    Where the labels are not given they are the ends of the names, as long as it takes to tell them apart.
    """
    if isinstance(model, DictConfig | dict):
        return [(str(label), name) for label, names in model.items() for name in texts(names)]
    names = texts(model)
    parts = [Path(name).parts or (name,) for name in names]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(names)):
        depth += 1
    return [("/".join(part[-depth:]), name) for part, name in zip(parts, names, strict=True)]


def texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, ListConfig | list | tuple) else [str(value)]
