"""What a configuration asks to learn, read once: credit, loss, teacher, exposure, and what the method says of itself.

`read` is called once in each process that needs it: by the entry, which hands the result to checks, plan and console,
and by the trainer in its own process.  Nothing else asks the configuration which method it is; no code outside a
method's own module and YAML knows its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

import advantage  # noqa: F401  registers the estimators
from advantage.estimators import ESTIMATORS, RENAMED, Estimator, EstimatorParams, params_from_config
from advantage.labels import Metric, Schedule, TokenField
from advantage.token_weights import TOKEN_WEIGHTS, TokenWeight
from config import CONFIG_DIR
from recipes.common.teacher.contexts import ContextParams, context_params
from recipes.common.teacher.decisions import ControllerConfig
from recipes.common.teacher.exposure import ExposureParams, controller_config, exposure_params
from workers.divergence.spec import MIXED
from workers.training.packing import (
    ATTENTION_ENTROPY,
    CALCULATE_ATTENTION_ENTROPY,
    CALCULATE_GRADIENT_NORM,
    GRADIENT_NORM,
)
from workers.training.params import LossParams, TeacherWeights, loss_params, teacher_weights

T = TypeVar("T")
# verl's own estimators that do not compare the rollouts of a problem with each other.
VERLS_UNGROUPED = ("gae", "reinforce_plus_plus", "remax")


@dataclass(frozen=True)
class About:
    """What a method says of itself in ``config/method/<name>.yaml``.

    Attributes:
        name: what `method=` selects it by.
        title: its name for people.
        description: one line.
        credit: what a token is trained with, as a formula.
        paper: title, authors and arxiv of its paper, as far as they are known.
        builds_on: names of the methods whose papers are cited too.
    """

    name: str
    title: str
    description: str
    credit: str
    paper: dict[str, str]
    builds_on: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A method under one configuration.

    Attributes:
        about: what it says of itself.
        credit: `algorithm.adv_estimator`.
        estimator: the estimator of that name; None where it is verl's.
        params: its parameters; None where it is verl's.
        loss: the divergence, or kind "none".
        token_weight: the factor of the divergence's tokens; None where it is uniform.
        weight_params: its parameters; None where it is uniform.
        mixing: each token's share of the forward KL; None where it is constant, or nothing is mixed.
        mixing_params: its parameters; None likewise.
        weights: whose weights the teacher has.
        contexts: what the teacher is shown.
        template_kwargs: options of the chat template that shows it.
        max_prompt_length: longest privileged prompt, tokens.
        responses: "sampled", or "reference": the data's solutions are trained on in their place.
        attention_layers: "last" or "all", over whose heads an attention entropy is averaged.
        exposure: how much of the reference it is shown.
        controller: who decides that, for a run of one step (`total_steps`); None where all of it is shown.
        lora: whether an adapter is trained.
        problems: what is wrong with all of it, one sentence each; the attributes then hold defaults.
        given: the values that a plan shows, by key without `self_distill.`, as they were given, right or wrong.
    """

    about: About
    credit: str
    estimator: Estimator | None
    params: EstimatorParams | None
    loss: LossParams
    token_weight: TokenWeight | None
    weight_params: EstimatorParams | None
    mixing: TokenWeight | None
    mixing_params: EstimatorParams | None
    weights: TeacherWeights
    contexts: ContextParams
    template_kwargs: dict[str, Any]
    max_prompt_length: int
    responses: str
    attention_layers: str
    exposure: ExposureParams
    controller: ControllerConfig | None
    lora: bool
    problems: tuple[str, ...]
    given: dict[str, Any]

    @property
    def name(self) -> str:
        """What `method=` selects it by."""
        return self.about.name

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """Names of the token signals that credit and token weight need (`advantage.Signals`)."""
        of_credit = self.estimator.needs(self.params) if self.estimator and self.params else ()
        of_weight = self.token_weight.needs(self.weight_params) if self.token_weight and self.weight_params else ()
        of_mixing = self.mixing.needs(self.mixing_params) if self.mixing and self.mixing_params else ()
        return tuple(dict.fromkeys((*of_credit, *of_weight, *of_mixing)))

    @property
    def measured(self) -> tuple[str, ...]:
        """Of the signals those that the student's pass measures only where it is asked to."""
        return tuple(name for name in (GRADIENT_NORM, ATTENTION_ENTROPY) if name in self.signals)

    @property
    def measures(self) -> dict[str, Any]:
        """The options of the student's pass that ask for `measured`."""
        options = {
            GRADIENT_NORM: (CALCULATE_GRADIENT_NORM, True),
            ATTENTION_ENTROPY: (CALCULATE_ATTENTION_ENTROPY, self.attention_layers),
        }
        return dict(options[name] for name in self.measured)

    @property
    def context(self) -> str:
        """Kind of what the teacher itself is shown, before any that it is contrasted with."""
        return self.contexts.kinds[0]

    @property
    def contrasts(self) -> bool:
        """Whether the credit contrasts the teacher's context with others."""
        return "contrast_gap" in self.signals

    @property
    def scores_with_teacher(self) -> bool:
        """Whether the teacher scores the sampled tokens in a pass of its own."""
        return not {"log_prob_gap", "contrast_gap", "teacher_entropy"}.isdisjoint(self.signals)

    @property
    def remembers(self) -> bool:
        """Whether a step's credit depends on those before it."""
        return self.params is not None and self.params.remembers

    @property
    def trains_references(self) -> bool:
        """Whether the data's solutions are trained on, and nothing is sampled but for validation."""
        return self.responses == "reference"

    @property
    def uses_teacher(self) -> bool:
        """Whether the self-teacher takes part: scoring the sampled tokens, or inside the loss."""
        return self.scores_with_teacher or self.loss.active

    @property
    def scores_student(self) -> bool:
        """Whether the student's log-probs and entropies take a pass of their own before the update.

        A divergence over the whole vocabulary that is trained alone measures both in its own pass.
        """
        loss = self.loss
        return loss.ppo or bool(self.signals) or loss.top_k is not None or loss.importance_clip is not None

    @property
    def compares_groups(self) -> bool:
        """Whether the group advantage A_G is trained with, so that a problem needs several rollouts."""
        grouped = self.credit not in VERLS_UNGROUPED if self.estimator is None else self.estimator.uses_group
        return self.loss.ppo and grouped

    @property
    def truncates(self) -> bool:
        """Whether the teacher sees parts of references."""
        return self.uses_teacher and self.exposure.active

    @property
    def teacher_copy(self) -> bool:
        """Whether the teacher is a second set of weights."""
        return self.uses_teacher and self.weights.needs_copy(lora=self.lora)

    @property
    def scoring_weights(self) -> str:
        """Where the scoring pass finds the teacher's weights; see `recipes.common.teacher.sequences`."""
        if self.weights.weights == "current":
            return "current"
        in_engine = self.weights.passes > 1 or self.weights.needs_copy(lora=self.lora)
        return "engine_copy" if in_engine else "frozen_adapter"

    @property
    def token_fields(self) -> tuple[TokenField, ...]:
        """The token fields that the credit is made of, with their labels for people."""
        return self.estimator.tokens if self.estimator else ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers of each step that are this method's own, with their labels for people."""
        return self.estimator.metrics if self.estimator else ()

    def schedules(self, steps: int) -> list[Schedule]:
        """What of it changes over a run or over a response by the configuration alone.

        Args:
            steps: of the run.
        """
        found = [s for params in (self.params, self.weight_params) if params for s in params.schedules]
        if self.mixing_params:
            note = "each token's share of the forward KL, the rest being the reverse KL's"
            found += [
                replace(s, title="Share of the forward KL", note=f"{note}, by {s.over}")
                for s in self.mixing_params.schedules
            ]
        if self.controller and self.uses_teacher:
            found += replace(self.controller, total_steps=steps).schedules
        return found

    def rows(self) -> list[tuple[str, str]]:
        """What is learned, as (part, value): method with its credit, and teacher and loss where they take part.

        Values stand as they were given: what is wrong with one does not change what is shown.
        """
        shown = [f"{name}={self.given[f'algorithm.{name}']}" for name in self._shown_parameters()]
        rows = [("method", f"{self.name}  ({', '.join([f'credit {self.credit}', *shown])})")]
        if self.trains_references:
            rows.append(("responses", "the data's solutions; nothing is sampled but for validation"))
        loss = self._given("loss.kind") != "none"
        if self.scores_with_teacher or loss:
            mode, exposed = self._given("exposure.mode"), ""
            if mode != "full":
                value = f" {self._given('exposure.fixed_exposure')}" if mode == "fixed" else ""
                exposed = f", exposure {mode}{value}"
            rows.append(
                ("teacher", f"{self._given('teacher.weights')} weights, shown {self.contexts.sentence()}{exposed}")
            )
        if loss:
            kind, clip, ppo = (self._given(f"loss.{name}") for name in ("kind", "clip", "ppo"))
            clipped = "" if clip is None else f", entries clipped at {clip}"
            bound = self._given("loss.importance_clip")
            clipped += "" if bound is None else f", × importance ratio of at most {bound}"
            beside = f"PPO clip + {self._given('loss.coefficient')} × " if ppo else ""
            weighting, reduction = self._given("loss.weighting"), self._given("loss.reduction")
            if kind == MIXED:
                by = self._given("loss.mixing")
                kind += f", forward KL's share {self._given('loss.forward_share') if by == 'constant' else f'by {by}'}"
            rows.append(("loss", f"{beside}{kind}, {self._compared()}{clipped}, {weighting} weights, {reduction}"))
        return rows

    def _shown_parameters(self) -> list[str]:
        """Of the estimator's those in force, and any other that was given: where one is wrong, that is told."""
        if self.estimator is None or self.params is None:
            return []
        idle, defaults = self.params.idle, self.estimator.params()

        def told(name: str) -> bool:
            return name not in idle or self.given[f"algorithm.{name}"] not in (None, getattr(defaults, name))

        return [name for name in self.estimator.shows if told(name)]

    def _compared(self) -> str:
        """Over which tokens the divergence is."""
        count = self._given("loss.top_k")
        if count is None:
            return "full vocabulary"
        by = self._given("loss.top_k_by")
        return f"the {by}'s top {count}" + (" and a bucket of the others" if by == "student" else "")

    def _given(self, key: str) -> Any:
        value = self.given.get(key)
        return f"{value:g}" if isinstance(value, float) else value


def read(cfg: DictConfig) -> Method:
    """Read the method of a resolved configuration; what is wrong stands in `problems`, and nothing is raised for it."""
    node, algorithm = cfg.self_distill, cfg.algorithm
    problems: list[str] = []

    def tried(make: Callable[[], T], otherwise: T) -> T:
        try:
            return make()
        except (TypeError, ValueError) as error:
            problems.append(str(error))
            return otherwise

    credit = str(algorithm.adv_estimator)
    estimator = ESTIMATORS.get(credit)
    params: EstimatorParams | None = None
    if estimator is not None:
        params = tried(lambda: params_from_config(credit, algorithm), estimator.params())
    problems += _old_names(credit, algorithm)
    loss = tried(lambda: loss_params(node), LossParams())
    weight = TOKEN_WEIGHTS.get(loss.weighting)
    weight_params = None if weight is None else tried(lambda: weight.params_from(algorithm), weight.params())
    mixing = TOKEN_WEIGHTS.get(loss.mixing) if loss.mixed else None
    mixing_params = None if mixing is None else tried(lambda: mixing.params_from(algorithm), mixing.params())
    exposure = tried(lambda: exposure_params(node), ExposureParams())
    controller = tried(lambda: controller_config(node, exposure), None) if exposure.active else None
    teacher = node.teacher
    weights = tried(lambda: teacher_weights(node), TeacherWeights())
    return Method(
        about=about(node),
        credit=credit,
        estimator=estimator,
        params=params,
        loss=loss,
        token_weight=weight,
        weight_params=weight_params,
        mixing=mixing,
        mixing_params=mixing_params,
        weights=weights,
        contexts=tried(lambda: context_params(teacher), ContextParams()),
        template_kwargs=dict(teacher.template_kwargs) if OmegaConf.is_dict(teacher.template_kwargs) else {},
        max_prompt_length=teacher.max_prompt_length,
        responses=str(node.get("responses", "sampled")),
        attention_layers=str(node.get("attention_entropy_layers", "last")),
        exposure=exposure,
        controller=controller,
        lora=tried(lambda: int(cfg.actor_rollout_ref.model.get("lora_rank", 0) or 0) > 0, False),
        problems=tuple(problems),
        given=_given(cfg, credit, estimator),
    )


def _given(cfg: DictConfig, credit: str, estimator: Estimator | None) -> dict[str, Any]:
    """What `Method.rows` shows, as the configuration has it; a parameter that it leaves out has its default."""
    found = {
        f"{part}.{key}": value
        for part in ("teacher", "exposure", "loss")
        if OmegaConf.is_dict(cfg.self_distill.get(part))
        for key, value in cfg.self_distill[part].items()
    }
    usual = estimator.params() if estimator else None
    for name in estimator.shows if estimator else ():
        value = OmegaConf.select(cfg.algorithm, f"{credit}.{name}", default=getattr(usual, name))
        found[f"algorithm.{name}"] = value
    return found


def _old_names(credit: str, algorithm: Any) -> Iterator[str]:
    if credit in RENAMED:
        yield f"algorithm.adv_estimator={credit}: it is called {RENAMED[credit]} now, and so are its parameters"
    for old in (name for name in RENAMED if name in algorithm and name not in {w.node for w in TOKEN_WEIGHTS.values()}):
        yield f"algorithm.{old}: these parameters are called algorithm.{RENAMED[old]} now"


def about(self_distill: Any) -> About:
    """What the method of a `self_distill` node says of itself; runs of earlier versions say only their name."""
    name = str(self_distill.get("method", "?"))
    node = self_distill.get("about") or {}
    return _about(name, OmegaConf.to_container(node) if OmegaConf.is_config(node) else node)


def _about(name: str, node: dict[str, Any]) -> About:
    paper = {key: str(value) for key, value in (node.get("paper") or {}).items() if value is not None}
    return About(
        name=name,
        title=node.get("title") or name,
        description=node.get("description") or "",
        credit=node.get("credit") or "",
        paper=paper,
        builds_on=tuple(node.get("builds_on") or ()),
    )


def shipped() -> list[About]:
    """What each bundle in ``config/method`` says of itself, by name; the bundles among its defaults fill the gaps."""
    return [
        _about(path.stem, _bundle(path.stem).get("self_distill", {}).get("about", {}))
        for path in sorted((CONFIG_DIR / "method").glob("*.yaml"))
    ]


def cited(method: About) -> list[dict[str, str]]:
    """The papers of a method, its own first, then those of the methods that it builds on."""
    known = {other.name: other for other in shipped()}
    papers = [method.paper, *(known[name].paper for name in method.builds_on if name in known)]
    return [paper for i, paper in enumerate(papers) if paper and paper not in papers[:i]]


def _bundle(name: str) -> dict[str, Any]:
    """A bundle's YAML merged over those of its group that it names among its defaults."""
    own = yaml.safe_load((CONFIG_DIR / "method" / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    merged = OmegaConf.merge(*map(OmegaConf.create, [*map(_bundle, bases), own]))
    return OmegaConf.to_container(merged, resolve=False)  # type: ignore[return-value]
