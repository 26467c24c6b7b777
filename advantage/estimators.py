"""How an advantage estimator of this family is put together: named inputs, typed parameters, one composition rule.

An estimator is a pure function of the group advantage A_G (verl's own GRPO advantage) and of token signals:

    @estimator("name", params=NameParams, needs=("log_prob_gap",))
    def name_credit(inputs: CreditInputs, params: NameParams) -> Credit: ...

It knows nothing of verl, of Hydra or of where the signals come from: `advantage.register` and `advantage.signals` see
to that. Parameters are one frozen dataclass per estimator, and its field defaults are the only place defaults are kept.
Most methods add a token field to A_G: `additive_credit` is that rule, with its metrics, for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from advantage.checks import as_mask, check_finite, check_shape, masked_float32
from advantage.labels import Metric, Schedule, TokenField
from advantage.params import load_params, require, require_one
from advantage.scale import aimed_beta
from advantage.segments import batch_abs_mean, batch_magnitude
from advantage.signals import MissingSignalError, Signals

CORRECTION_RATIO_LIMIT = 5.0  # above it the teacher's correction drowns the verifier's advantage

# Of every estimator that adds a token field to A_G.
CORRECTION_RATIO = Metric(
    "credit/correction_ratio",
    "Correction / advantage",
    f"mean |teacher's correction| over mean |A_G|; above {CORRECTION_RATIO_LIMIT:g} the verifier no longer decides",
    line="ratio",
    short="corr/adv",
    form="{:.2g}",
    limit=CORRECTION_RATIO_LIMIT,
    from_zero=True,
)
# Of those whose beta follows a target.
AIMED_BETA = Metric(
    "credit/beta",
    "Weight β of the correction",
    "set so that mean |correction| over mean |A_G| is the target, by means over steps",
    line="β",
    short="β",
    form="{:.2g}",
    from_zero=True,
)
# Estimators that were called like the method whose sampled-token form they are.
RENAMED = {"opsd": "opsd_sampled", "pw_opsd": "pw_opsd_sampled", "atesd": "atesd_sampled"}


@dataclass(frozen=True, kw_only=True)
class CreditInputs(Signals):
    """What an estimator may use: the token signals, and what verl knows of each response.

    Attributes:
        group_advantage: A_G. `run_estimator` hands it on as fp32, zero outside the mask.
        response_mask: non-zero on valid tokens, of any dtype. `run_estimator` hands it on as bool.
        scores: (B,) the verifier's reward of each response (the sum of its token rewards).
        equal_reward_rows: (B,) bool, rows of a group of two or more whose rewards are all equal.
    """

    group_advantage: torch.Tensor
    response_mask: torch.Tensor
    scores: torch.Tensor
    equal_reward_rows: torch.Tensor


@dataclass(frozen=True)
class Credit:
    """An estimator's result.

    Attributes:
        advantages: (B, T) fp32, zero outside the mask.
        metrics: scalars of the step by name.
        tokens: what the credit of a token was made of (omega, a weight), name to (B, T). Reports show it on samples of
            responses; nothing is trained with it.
        memory: what the estimator must be handed as the signal of that name in the next step, and so what a checkpoint
            keeps of it; empty where it remembers nothing.
    """

    advantages: torch.Tensor
    metrics: dict[str, float]
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EstimatorParams:
    """Base of every estimator's parameters; its fields are the keys of `algorithm.<name>`."""

    def validate(self) -> None:
        """Refuse parameters that are not usable.

        Raises:
            ValueError: if one of them, or a combination, is not usable; states value, rule and fix.
        """

    @property
    def remembers(self) -> bool:
        """Whether a step's credit depends on those before it, through the signal `memory`."""
        return False

    @property
    def weight_remembers(self) -> bool:
        """Whether that holds for the token weights that these parameters make, too."""
        return False

    @property
    def idle(self) -> frozenset[str]:
        """Names of parameters that have no effect beside the others."""
        return frozenset()

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """What these parameters fix over the steps of a run, or over the positions of a response."""
        return ()


@dataclass(frozen=True)
class AdditiveParams(EstimatorParams):
    """Parameters of the estimators that add a token field to A_G.

    Attributes:
        beta: weight of the teacher's correction; 0 is GRPO, bit for bit. None: `target_ratio` sets it. The papers
            give no value: ours.
        mask_zero_variance_groups: no correction for groups whose rewards are all equal, where A_G is zero and the
            correction would be the whole gradient. The papers keep it; masking is ours. A group of one is never masked.
        target_ratio: mean |correction| over mean |A_G| that beta is set for, before groups are masked; in force where
            `beta` is None. 0 is GRPO. A ratio means the same to models of any certainty, a beta does not. Ours.
        ratio_decay: what a step leaves of the weight of those before it in the two means, in [0, 1); 0 forgets them.
    """

    beta: float | None = 0.1
    mask_zero_variance_groups: bool = True
    target_ratio: float | None = None
    ratio_decay: float = 0.9

    def validate(self) -> None:
        """Refuse a beta or a ratio that is negative or not finite, and both at once."""
        require(self.beta is None or 0.0 <= self.beta < math.inf, "beta", self.beta, "finite, 0 or more (0 is GRPO)")
        require(
            self.target_ratio is None or 0.0 <= self.target_ratio < math.inf,
            "target_ratio",
            self.target_ratio,
            "finite, 0 or more (0 is GRPO), or null",
        )
        require_one(self, "beta", "target_ratio")
        require(0.0 <= self.ratio_decay < 1.0, "ratio_decay", self.ratio_decay, "in [0, 1); 0 forgets the steps before")

    @property
    def remembers(self) -> bool:
        """Whether beta follows a ratio."""
        return self.beta is None

    @property
    def idle(self) -> frozenset[str]:
        """The fixed beta or the parameters of the ratio, whichever is not in force."""
        return frozenset({"beta"} if self.beta is None else {"target_ratio", "ratio_decay"})


CreditFn = Callable[[CreditInputs, Any], Credit]
Needs = Sequence[str] | Callable[[Any], tuple[str, ...]]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator, and all that others must know of it.

    Attributes:
        name: what `algorithm.adv_estimator` selects it by, and the key of its parameters, `algorithm.<name>`.
        credit: the rule.
        params: its parameters' dataclass.
        needs: maps its parameters to the names of the signals that they require.
        uses_group: whether A_G has a part in it, so that a problem needs several responses.
        shows: parameters that are worth a place in a run's first lines.
        tokens: what it leaves in `Credit.tokens`.
        metrics: those of its metrics that a report draws.
    """

    name: str
    credit: CreditFn
    params: type[EstimatorParams]
    needs: Callable[[Any], tuple[str, ...]]
    uses_group: bool = True
    shows: tuple[str, ...] = ()
    tokens: tuple[TokenField, ...] = ()
    metrics: tuple[Metric, ...] = ()


ESTIMATORS: dict[str, Estimator] = {}


def estimator(
    name: str,
    *,
    params: type[EstimatorParams],
    needs: Needs = (),
    uses_group: bool = True,
    shows: Sequence[str] = (),
    tokens: Sequence[TokenField] = (),
    metrics: Sequence[Metric] = (),
) -> Callable[[CreditFn], CreditFn]:
    """Enter a credit function into `ESTIMATORS`.

    Args:
        name: what `algorithm.adv_estimator` selects it by, and the key of its parameters.
        params: its parameters' dataclass.
        needs: the signals it requires, or a function of the parameters that returns them.
        uses_group: whether A_G has a part in it, so that a problem needs several responses.
        shows: parameters that are worth a place in a run's first lines.
        tokens: what it leaves in `Credit.tokens`.
        metrics: those of its metrics that a report draws. Those of `additive_credit` come by themselves where the
            parameters are `AdditiveParams`.

    Returns:
        A decorator that returns the function as it is.
    """

    def enter(fn: CreditFn) -> CreditFn:
        shared = (CORRECTION_RATIO, AIMED_BETA) if issubclass(params, AdditiveParams) else ()
        ESTIMATORS[name] = Estimator(
            name, fn, params, needs_of(needs), uses_group, tuple(shows), tuple(tokens), (*shared, *metrics)
        )
        return fn

    return enter


def needs_of(needs: Needs) -> Callable[[Any], tuple[str, ...]]:
    """A fixed list of signals, or a function of the parameters, as a function of the parameters."""
    return needs if callable(needs) else lambda params: tuple(needs)


def get_estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        ValueError: if there is none; lists those there are.
    """
    if name in RENAMED:
        raise ValueError(f"advantage estimator {name!r} is called {RENAMED[name]!r} now, and so are its parameters")
    if name not in ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {name!r}: must be one of {', '.join(sorted(ESTIMATORS))}")
    return ESTIMATORS[name]


def params_from_config(name: str, algorithm: Any) -> EstimatorParams:
    """The parameters of an estimator, from the `algorithm` node of a config.

    Args:
        name: the estimator; its keys stand under `algorithm.<name>` and default to the dataclass's values.
        algorithm: an OmegaConf node, a mapping, a dataclass with `get`, or None for defaults.

    Raises:
        ValueError: if the estimator or a key is unknown, a type is wrong or a value is outside its range.
    """
    node = None if algorithm is None else algorithm.get(name, None)
    return load_params(get_estimator(name).params, node, where=f"algorithm.{name}")


def required_signals(name: str, algorithm: Any = None) -> tuple[str, ...]:
    """Names of the signals an estimator needs under a config; lets a trainer compute those and no others.

    Args:
        name: the estimator.
        algorithm: the `algorithm` node, as in `params_from_config`; None for defaults.
    """
    return get_estimator(name).needs(params_from_config(name, algorithm))


def run_estimator(name: str, inputs: CreditInputs, params: EstimatorParams) -> Credit:
    """Run an estimator after checking that the signals it needs are there.

    The estimator sees the mask as bool and A_G as fp32, whatever the caller has.

    Args:
        name: the estimator.
        inputs: A_G, the mask and the signals.
        params: this estimator's.

    Raises:
        ValueError: if the mask is not a (B, T) tensor.
        MissingSignalError: if signals are missing; lists them.
        NonFiniteSignalError: if A_G, a signal or the resulting advantages have NaN or infinity on a valid token.
    """
    chosen = get_estimator(name)
    missing = [signal for signal in chosen.needs(params) if getattr(inputs, signal) is None]
    if missing:
        raise MissingSignalError(_missing_message(name, missing, chosen.needs(params)))
    mask = as_mask(inputs.response_mask)
    check_finite("group advantage A_G", inputs.group_advantage, mask)
    inputs = replace(inputs, response_mask=mask, group_advantage=masked_float32(inputs.group_advantage, mask))
    with torch.no_grad():
        credit = chosen.credit(inputs, params)
    check_finite(f"the advantage of {name}", credit.advantages, inputs.response_mask)
    return credit


def additive_credit(
    inputs: CreditInputs,
    params: AdditiveParams,
    field: torch.Tensor,
    metrics: dict[str, float],
    tokens: dict[str, torch.Tensor] | None = None,
) -> Credit:
    """A_t = A_G + beta * field_t: the composition rule, with its metrics.

    Args:
        inputs: supplies A_G, the mask and the equal-reward rows.
        params: beta, or the ratio that it is set for, and the treatment of equal-reward groups.
        field: (B, T) fp32 token field, zero outside the mask. It is overwritten.
        metrics: the estimator's own metrics, to which the shared ones are added.
        tokens: what `Credit.tokens` should hold; `field` must not be among it.
    """
    mask, anchor = inputs.response_mask, inputs.group_advantage
    silenced = inputs.equal_reward_rows & params.mask_zero_variance_groups
    beta = params.beta
    memory: dict[str, torch.Tensor] = {}
    if beta is None:
        target = cast(float, params.target_ratio)  # validated: one of the two is given
        beta, memory, aimed = aimed_beta(field, anchor, mask, inputs.memory, target=target, decay=params.ratio_decay)
        metrics = {**metrics, **aimed}
    correction = field.mul_(beta)
    correction[silenced] = 0.0
    metrics = {**metrics, **_correction_metrics(correction, anchor, mask, silenced)}
    return Credit(correction.add_(anchor), metrics, tokens or {}, memory)


def masked_signal(inputs: CreditInputs, name: str) -> torch.Tensor:
    """A token signal as fp32, zero outside the mask: (B, T).

    Args:
        inputs: the signals and the mask.
        name: a field of `Signals` that has a value per token.

    Raises:
        MissingSignalError: if it was not supplied.
        ValueError: if its shape is not the mask's.
        NonFiniteSignalError: if it has NaN or infinity on a valid token.
    """
    value = inputs.signal(name)
    check_shape(name, value, inputs.response_mask)
    check_finite(name, value, inputs.response_mask)
    return masked_float32(value, inputs.response_mask)


def masked_gap(inputs: CreditInputs, name: str = "log_prob_gap") -> torch.Tensor:
    """The gap delta_t as fp32, zero outside the mask and in responses without a teacher: (B, T) nats.

    Args:
        inputs: the signals and the mask.
        name: "log_prob_gap", or "contrast_gap".

    Raises:
        ValueError: if the gap is missing, of another shape or not finite, as in `masked_signal`.
    """
    return masked_signal(inputs, name).mul_(inputs.taught(inputs.response_mask))


def magnitude_metrics(prefix: str, values: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Mean and 99th percentile of |x| over the valid tokens of the batch, as `prefix/mean` and `prefix/p99`.

    Args:
        prefix: what the metrics' names begin with.
        values: (B, T).
        mask: (B, T), non-zero on valid tokens.
    """
    mean, p99 = batch_magnitude(values, mask)
    return {f"{prefix}/mean": mean, f"{prefix}/p99": p99}


def correction_warning(metrics: Mapping[str, float]) -> str | None:
    """A sentence for the log when the correction outweighs the verifier's advantage, else None."""
    ratio = metrics.get("credit/correction_ratio", 0.0)
    if ratio <= CORRECTION_RATIO_LIMIT:
        return None
    return (
        f"credit/correction_ratio={ratio:.3g}: the teacher's correction is more than {CORRECTION_RATIO_LIMIT:g} times "
        "the group advantage, so the verifier no longer decides where the update goes; lower target_ratio or beta, "
        "or raise gap_eps_share or gap_eps"
    )


def equal_reward_rows(scores: torch.Tensor, index: Any) -> torch.Tensor:
    """Rows of groups whose rewards are all equal: (B,) bool.

    A group of one is not counted: verl gives it its raw score as advantage, and methods that sample one response per
    prompt would otherwise lose their whole signal.

    Args:
        scores: (B,) reward of each response.
        index: (B,) group label of each response, of any hashable kind (verl passes `uid`).
    """
    # Not np.unique, which sorts: labels may be of mixed types.
    numbers: dict[Any, int] = {}
    groups = torch.tensor([numbers.setdefault(label, len(numbers)) for label in index], dtype=torch.long)
    groups = groups.to(scores.device)
    shape = (len(numbers),)
    highest = torch.full(shape, -math.inf, device=scores.device, dtype=scores.dtype)
    highest = highest.scatter_reduce(0, groups, scores, "amax")
    lowest = torch.full(shape, math.inf, device=scores.device, dtype=scores.dtype)
    lowest = lowest.scatter_reduce(0, groups, scores, "amin")
    several = torch.bincount(groups, minlength=len(numbers)) > 1
    return ((highest == lowest) & several)[groups]


def _correction_metrics(
    correction: torch.Tensor, anchor: torch.Tensor, mask: torch.Tensor, silenced: torch.Tensor
) -> dict[str, float]:
    metrics = magnitude_metrics("credit/correction", correction, mask)
    correction_mean = metrics["credit/correction/mean"]
    anchor_mean = batch_abs_mean(anchor, mask)
    counts = mask.sum(dim=-1)
    return {
        **metrics,
        "credit/correction/masked_share": float(counts[silenced].sum() / counts.sum().clamp(min=1)),
        "credit/group_advantage/mean": anchor_mean,
        "credit/correction_ratio": correction_mean / anchor_mean if anchor_mean > 0 else 0.0,
        "credit/correction_ratio_undefined": float(anchor_mean == 0),
    }


def _missing_message(name: str, missing: Sequence[str], needed: Sequence[str]) -> str:
    arguments = ", ".join(f"{signal}=..." for signal in needed)
    return (
        f"adv_estimator={name!r} needs the signals {', '.join(needed)}, and {', '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing: verl hands an estimator rewards and masks only. Wrap the "
        "call that computes advantages:\n"
        f"    with advantage.token_signals({arguments}) as signals:\n"
        f"        data = compute_advantage(data, adv_estimator={name!r}, config=config.algorithm)"
    )
