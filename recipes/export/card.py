"""README.md of an exported model: what it was made from, how, and what was measured, with the hub's front matter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from recipes.common.method import About, about, cited
from recipes.common.models import Located
from recipes.common.teacher.prompts import student_messages
from recipes.data.store import read_card
from recipes.export.public import LEFT_OUT, portable
from recipes.report.preset import NoPreset, Setting, compare_with_preset
from recipes.report.run_data import Run, Validation, validations

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = ("license", "license_name", "license_link")

_PARAMETERS = (
    ("problems a step", "data.train_batch_size"),
    ("rollouts a problem", "actor_rollout_ref.rollout.n"),
    ("problems a mini-batch", "actor_rollout_ref.actor.ppo_mini_batch_size"),
    ("learning rate", "actor_rollout_ref.actor.optim.lr"),
    ("its schedule", "actor_rollout_ref.actor.optim.lr_scheduler_type"),
    ("gradient norm, at most", "actor_rollout_ref.actor.grad_clip"),
    ("weights trained in", "actor_rollout_ref.actor.fsdp_config.model_dtype"),
    ("prompt tokens, at most", "data.max_prompt_length"),
    ("response tokens, at most", "data.max_response_length"),
    ("temperature of rollouts", "actor_rollout_ref.rollout.temperature"),
    ("top-p of rollouts", "actor_rollout_ref.rollout.top_p"),
    ("top-k of rollouts", "actor_rollout_ref.rollout.top_k"),
    ("seed of the data's order", "data.seed"),
)
_LORA_PARAMETERS = (
    ("LoRA rank", "actor_rollout_ref.model.lora_rank"),
    ("LoRA alpha", "actor_rollout_ref.model.lora_alpha"),
    ("LoRA on", "actor_rollout_ref.model.target_modules"),
)


@dataclass(frozen=True)
class Base:
    """The model that was trained.

    Attributes:
        hub: its name on the hub, if it has one.
        shown: a name to show.
        licence: the licence fields of its own card, as the hub's front matter has them.
    """

    hub: str | None
    shown: str
    licence: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        name: the exported model's, that of its folder.
        base: the model that was trained.
        step: the training step of the weights; None if it is not known.
        lora: whether an adapter was trained.
        adapter_only: whether the folder holds the adapter alone.
        dtype: of the weights in the folder, such as "bfloat16".
        rank: the adapter's, if it is alone in the folder.
        run: the training run; None if its directory is not at hand.
    """

    name: str
    base: Base
    step: int | None
    lora: bool
    adapter_only: bool
    dtype: str
    rank: int | None
    run: Run | None


def base_of(located: Located, run: Run | None, hub: str | None = None) -> Base:
    """The base model of a checkpoint.

    Args:
        located: the checkpoint; if it is an adapter, it may name its base.
        run: the training run, whose configuration names the model that it started from.
        hub: name on the hub that the user gave, which comes first.
    """
    if run is not None:
        path = str(run.config.actor_rollout_ref.model.path)
    elif located.base is not None:
        path = located.base.path
    else:
        path = ""
    hub = hub or _hub_name(path)
    return Base(hub, hub or portable(path) or "a model that the checkpoint does not name", _licence(path, hub))


def _hub_name(path: str) -> str | None:
    """The hub's name for a model's path: itself, or that of the hub's cache folder that it is in."""
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", path)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return path if _HUB_NAME.fullmatch(path) and not Path(path).exists() else None


def _licence(path: str, hub: str | None) -> dict[str, str]:
    """Licence fields of the base model's card, if that is on this disk; nothing is guessed or fetched."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    places: list[Any] = [Path(path) / "README.md" if path else None]
    places.append(try_to_load_from_cache(hub, "README.md") if hub else None)
    for place in places:
        if isinstance(place, str | Path) and Path(place).is_file():
            try:
                data = ModelCard.load(Path(place), ignore_metadata_errors=True).data.to_dict()
            except ValueError:  # a card whose front matter is not YAML
                continue
            return {key: data[key] for key in _LICENCE if isinstance(data.get(key), str)}
    return {}


# ---------------------------------------------------------------------- the card


def model_card(subject: Subject) -> ModelCard:
    """The card with its front matter; without a run it says nothing of the training."""
    from huggingface_hub import ModelCard, ModelCardData

    run = subject.run
    method = run.method if run else None
    results = _results(subject)
    distilled = run is not None and run.asks is not None and run.asks.uses_teacher
    tags = ["self-distillation", "on-policy-distillation"] if distilled else []
    data = ModelCardData(
        base_model=subject.base.hub,
        library_name="peft" if subject.adapter_only else "transformers",
        pipeline_tag="text-generation",
        tags=[*tags, "verl", *([method.replace("_", "-")] if method else []), *(["lora"] if subject.lora else [])],
        datasets=_hub_datasets(run.config.data.train_files) or None if run else None,
        **({"model_name": subject.name, "eval_results": results} if results else {}),
        **subject.base.licence,
        **({"base_model_relation": "adapter" if subject.adapter_only else "finetune"} if subject.base.hub else {}),
    )
    sections = [_head(subject), _usage(subject)]
    if run is not None:
        preset, changed = _preset(run)
        sections += [
            _method(run, preset),
            _data(run),
            _training(subject, run),
            changed,
            _validation(run, subject.step),
            _citation(about(run.config.self_distill)),
        ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _head(subject: Subject) -> str:
    base = subject.base
    named = f"[{base.hub}](https://huggingface.co/{base.hub})" if base.hub else f"`{base.shown}`"
    what = f"# {subject.name}\n\n"
    run = subject.run
    if run is None:
        made = f"Made from {named}."
    else:
        of = about(run.config.self_distill)
        called = f"{of.title} (`{of.name}`)" if of.title != of.name else f"`{of.name}`"
        made = f"{named}, trained with {called} by verl-self-distill, recipes of on-policy self-distillation on "
        made += "[verl](https://github.com/volcengine/verl)."
    step = "" if subject.step is None else f" after training step {subject.step}"
    if run is not None and subject.step is not None and run.planned_steps:
        step += f" of {run.planned_steps}"
    if subject.adapter_only:
        weights = f"A LoRA adapter of rank {subject.rank}{step}, in {subject.dtype}; it needs its base model."
    else:
        merged = ", the LoRA adapter merged into them" if subject.lora else ""
        weights = f"The weights{step} in {subject.dtype}{merged}."
    config = "" if run is None else " All settings of the training are in `training_config.yaml`."
    return f"{what}{made} {weights}{config}"


def _usage(subject: Subject) -> str:
    kwargs = ""
    if subject.run is not None:
        given = OmegaConf.select(subject.run.config, "data.apply_chat_template_kwargs", default=None) or {}
        kwargs = "".join(f", {key}={value!r}" for key, value in given.items())
    where = f"./{subject.name}"
    if subject.adapter_only:
        serve = (
            f"vllm serve {subject.base.shown} --enable-lora --max-lora-rank {subject.rank} "
            f"--lora-modules {subject.name}={where}"
        )
        imports, load = "from peft import AutoPeftModelForCausalLM\n", "AutoPeftModelForCausalLM"
        defaults = "Sampling defaults are the base model's."
    else:
        serve = f"vllm serve {where}"
        imports, load = "", "AutoModelForCausalLM"
        defaults = "Sampling defaults are in `generation_config.json`, from the base model."
    names = "AutoTokenizer" if subject.adapter_only else "AutoModelForCausalLM, AutoTokenizer"
    messages = json.dumps(student_messages("What is 12 + 30?"))
    return f"""## Use

`{where}` is this folder, or its name on the hub.

```bash
{serve}
```

```python
{imports}from transformers import {names}

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = {load}.from_pretrained("{where}", dtype="auto")
messages = {messages}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{kwargs}
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0, inputs["input_ids"].shape[1] :]))
```

The prompt is that of data prepared by verl-self-distill. {defaults}"""


def _method(run: Run, settings: list[Setting]) -> str:
    lines = ["## Method", "", *_table(("part", "value"), run.asks.rows() if run.asks else [("method", run.method)])]
    if settings:
        rows = [
            (f"`{s.key}`", s.value, f"changed; the preset's {s.preset}: {s.source}" if s.differs else s.source)
            for s in settings
        ]
        head = ("setting", "value", "source")
        lines += ["", "Every value of the method and of how it is trained:", "", *_table(head, rows)]
    return "\n".join(lines)


def _data(run: Run) -> str:
    data = run.config.data
    rows = [
        (part, _cell_of_files(files))
        for part, files in (
            ("training", data.train_files),
            ("validation", data.val_files),
            ("probe", OmegaConf.select(run.config, "self_distill.exposure.probe_file", default=None)),
        )
        if files and (part != "probe" or OmegaConf.select(run.config, "self_distill.exposure.mode") == "learned")
    ]
    return "\n".join(["## Data", "", *_table(("for", "files"), rows)])


def _cell_of_files(files: Any) -> str:
    parts = []
    for file in _listed(files):
        made_from, card = _hub_dataset(file), read_card(Path(file).parent)
        shown = f"{card['name']}/{Path(file).name}" if card and card.get("name") else portable(file)
        parts.append(f"`{shown}`" + (f" (prepared from {made_from})" if made_from else ""))
    return ", ".join(parts)


def _listed(files: Any) -> list[str]:
    return [files] if isinstance(files, str) else [str(file) for file in files]


def _hub_dataset(file: str) -> str | None:
    """The hub's name of the data set that a prepared file was made from."""
    card = read_card(Path(file).parent) or {}
    hub = card.get("made_from", {}).get("dataset", {}).get("hub")
    return hub if isinstance(hub, str) and _HUB_NAME.fullmatch(hub) else None


def _hub_datasets(files: Any) -> list[str]:
    return list(dict.fromkeys(name for file in _listed(files) if (name := _hub_dataset(file))))


def _training(subject: Subject, run: Run) -> str:
    done = subject.step if subject.step is not None else (run.steps[-1]["step"] if run.steps else None)
    rows = [("model at the start", f"`{subject.base.shown}`"), ("steps done", str(done))]
    rows += [("steps planned", str(run.planned_steps))] if run.planned_steps else []
    for name, key in (*_PARAMETERS, *(_LORA_PARAMETERS if subject.lora else ())):
        value = OmegaConf.select(run.config, key, default=None)
        if value is not None and value != -1:  # -1: off
            rows.append((name, f"{value:g}" if isinstance(value, float) else portable(str(value))))
    workers = run.config.trainer.n_gpus_per_node * run.config.trainer.nnodes
    rows.append(("trained on", f"{workers} {run.config.trainer.device} worker{'s' * (workers > 1)}"))
    return "\n".join(["## Training", "", *_table(("setting", "value"), rows)])


def _preset(run: Run) -> tuple[list[Setting], str]:
    """The method's settings, and the section about what the run changed."""
    lines = ["## Departures from the preset", ""]
    try:
        found = compare_with_preset(run.directory, run.config)
    except NoPreset as error:
        return [], "\n".join([*lines, f"Not known: {portable(str(error))}."])
    run_dir = str(run.config.self_distill.run_dir)

    def public(setting: Setting) -> Setting:
        return Setting(setting.key, portable(setting.preset), portable(setting.value, run_dir), setting.source)

    changed = [s for s in map(public, found.changed) if s.differs and s.key.partition(".")[0] not in LEFT_OUT]
    if not changed:
        lines.append(f"None: `{found.name}` as it is.")
    else:
        lines += [f"Changed against `{found.name}`:", ""]
        rows = [(f"`{s.key}`", s.preset, s.value, s.source) for s in changed]
        lines += _table(("setting", "preset", "here", "source of the preset's value"), rows)
    return list(map(public, found.method)), "\n".join(lines)


def _validation(run: Run, step: int | None) -> str:
    found = validations(run)
    if not found:
        return "## Validation\n\nNothing was measured during the training."
    first, last, best = found[0], found[-1], max(found, key=lambda v: v.mean)
    names = sorted({name for v in found for name in v.sets})
    several = names if len(names) > 1 else []
    rows = [
        (label, str(v.step), _percent(v.mean, v.half), *(_percent(v.sets.get(name)) for name in several))
        for label, v in (("first", first), ("last", last), ("best", best))
    ]
    sampling = OmegaConf.select(run.config, "actor_rollout_ref.rollout.val_kwargs", default=None)
    how = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}; " if sampling is not None else ""
    before = ""
    if step is not None and last.step != step:
        before = f" These weights are those of step {step}, at which nothing was measured."
    mean = f"{last.name}, the mean of the sets" if several else f"{last.name} on {names[0]}"
    lines = [
        "## Validation",
        "",
        f"During the training, {last.name}: accuracy of so many samples a problem, in %, {how}± is the 95 % interval "
        f"over problems.{before}",
        "",
        *_table(("validation", "step", mean, *several), rows),
    ]
    return "\n".join(lines)


def _percent(value: float | None, half: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _results(subject: Subject) -> list[EvalResult]:
    """For the hub: the validation of exactly these weights, if there was one."""
    from huggingface_hub import EvalResult

    here: list[Validation] = []
    if subject.run is not None:
        here = [v for v in validations(subject.run) if v.step == subject.step]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=f"{name} (validation during the training)",
            metric_type="accuracy",
            metric_name=f"accuracy, {v.name}",
            metric_value=round(value, 6),
        )
        for v in here
        for name, value in v.sets.items()
    ]


def _citation(method: About) -> str:
    papers = cited(method)
    if not papers:
        return f"## Citation\n\nThe paper of `{method.name}`."
    entries = "\n\n".join(_bibtex(paper) for paper in papers)
    return f"## Citation\n\nThe method's papers:\n\n```bibtex\n{entries}\n```"


def _bibtex(paper: dict[str, str]) -> str:
    """A paper as far as its method's YAML knows it."""
    fields = {"title": paper.get("title"), "author": paper.get("authors")}
    if arxiv := paper.get("arxiv"):
        fields |= {"eprint": arxiv, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{arxiv}"}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    key = re.sub(r"\W+", "", paper.get("arxiv") or paper.get("title", "paper"))
    return f"@misc{{arxiv{key},\n{lines}\n}}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield _row(head)
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield _row(row)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", str(c)).replace("|", "\\|") for c in cells) + " |"
