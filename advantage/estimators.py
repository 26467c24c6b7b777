"""How an advantage estimator of this family is put together: named inputs, typed parameters, one composition rule.

An estimator is a pure function of the group advantage A_G (verl's own GRPO advantage) and of token signals:

    @estimator("name", params=NameParams, needs=("log_prob_gap",))
    def name_credit(inputs: CreditInputs, params: NameParams) -> Credit: ...

It knows nothing of verl, of Hydra or of where the signals come from: `advantage.register` and `advantage.signals` see
to that. Parameters are one frozen dataclass per estimator, and its field defaults are the only place defaults are kept.
Most methods add a token field to A_G: `additive_credit` is that rule, with its metrics, for all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from advantage.checks import as_mask, check_finite, check_shape, masked_float32
from advantage.segments import batch_abs_mean, batch_magnitude

CORRECTION_RATIO_LIMIT = 5.0  # above it the teacher's correction drowns the verifier's advantage

SIGNALS = ("entropy", "log_prob_gap", "token_ids", "router_signal", "token_counts", "step", "total_steps")
TOKEN_SHAPED_SIGNALS = ("entropy", "log_prob_gap", "token_ids", "router_signal")


class MissingSignalError(ValueError):
    """An estimator was called without a signal that it needs."""


@dataclass(frozen=True)
class CreditInputs:
    """What an estimator may use. Tensors are (B, T) with rows and padding as in `response_mask`, unless said otherwise.

    Attributes:
        group_advantage: A_G. `run_estimator` hands it on as fp32, zero outside the mask.
        response_mask: non-zero on valid tokens, of any dtype. `run_estimator` hands it on as bool.
        scores: (B,) the verifier's reward of each response (the sum of its token rewards).
        equal_reward_rows: (B,) bool, rows of a group of two or more whose rewards are all equal.
        entropy: H_t of the student over the full vocabulary, nats.
        log_prob_gap: delta_t = log p_T(o_t) - log p_S(o_t), nats, both at the rollout's weights.
        token_ids: the response's token ids.
        router_signal: any per-token quantity to route on instead of entropy.
        token_counts: (V,) how often each token id occurs in the training corpus.
        step, total_steps: training progress, for estimators with a schedule.
    """

    group_advantage: torch.Tensor
    response_mask: torch.Tensor
    scores: torch.Tensor
    equal_reward_rows: torch.Tensor
    entropy: torch.Tensor | None = None
    log_prob_gap: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    router_signal: torch.Tensor | None = None
    token_counts: torch.Tensor | None = None
    step: int | None = None
    total_steps: int | None = None

    def signal(self, name: str) -> Any:
        """The named signal.

        Raises:
            MissingSignalError: it was not supplied.
        """
        value = getattr(self, name)
        if value is None:
            raise MissingSignalError(f"the estimator needs the signal {name!r}, which was not supplied")
        return value


@dataclass(frozen=True)
class Credit:
    """An estimator's result: token advantages (B, T) fp32, zero outside the mask, and scalar metrics.

    `tokens` names what the credit of a token was made of (omega, a weight), (B, T) like the advantages. Reports show it
    on samples of responses; nothing is trained with it.
    """

    advantages: torch.Tensor
    metrics: dict[str, float]
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EstimatorParams:
    """Base of every estimator's parameters; its fields are the keys of `algorithm.<name>`."""

    def validate(self) -> None:
        """Raise ValueError, with value, rule and fix, if a parameter or a combination of them is not usable."""


@dataclass(frozen=True)
class AdditiveParams(EstimatorParams):
    """Parameters of the estimators that add a token field to A_G.

    Attributes:
        beta: weight of the teacher's correction; 0 is GRPO, bit for bit. The papers give no value: 0.1 is ours.
        mask_zero_variance_groups: no correction for groups whose rewards are all equal, where A_G is zero and the
            correction would be the whole gradient. The papers keep it; masking is ours. A group of one is never masked.
    """

    beta: float = 0.1
    mask_zero_variance_groups: bool = True

    def validate(self) -> None:
        require(0.0 <= self.beta < math.inf, "beta", self.beta, "finite, 0 or more (0 is GRPO)")


ParamsT = TypeVar("ParamsT", bound=EstimatorParams)
CreditFn = Callable[[CreditInputs, Any], Credit]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator. `needs` maps its parameters to the names of the signals that they require."""

    name: str
    credit: CreditFn
    params: type[EstimatorParams]
    needs: Callable[[Any], tuple[str, ...]]


ESTIMATORS: dict[str, Estimator] = {}


def estimator(
    name: str, *, params: type[EstimatorParams], needs: Sequence[str] | Callable[[Any], tuple[str, ...]] = ()
) -> Callable[[CreditFn], CreditFn]:
    """Enter a credit function under the name that `algorithm.adv_estimator` selects it by.

    Args:
        name: also the key of its parameters, `algorithm.<name>`.
        params: its parameter dataclass.
        needs: the signals it requires, or a function of the parameters that returns them.
    """
    wanted = needs if callable(needs) else _always(tuple(needs))

    def enter(fn: CreditFn) -> CreditFn:
        ESTIMATORS[name] = Estimator(name=name, credit=fn, params=params, needs=wanted)
        return fn

    return enter


def get_estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {name!r}: must be one of {', '.join(sorted(ESTIMATORS))}")
    return ESTIMATORS[name]


def params_from_config(name: str, algorithm: Any) -> EstimatorParams:
    """The parameters of an estimator, from the `algorithm` node of a config.

    Args:
        name: the estimator; its keys stand under `algorithm.<name>` and default to the dataclass's values.
        algorithm: an OmegaConf node, a mapping, a dataclass with `get`, or None for defaults.

    Raises:
        ValueError: unknown estimator, unknown key, wrong type or a value outside its range.
    """
    node = None if algorithm is None else algorithm.get(name, None)
    return load_params(get_estimator(name).params, node, where=f"algorithm.{name}")


def required_signals(name: str, algorithm: Any = None) -> tuple[str, ...]:
    """Names of the signals an estimator needs under a config; lets a trainer compute those and no others."""
    return get_estimator(name).needs(params_from_config(name, algorithm))


def load_params(params: type[ParamsT], node: Any, *, where: str) -> ParamsT:
    """Build and validate a parameter dataclass from a config node.

    Args:
        params: the dataclass.
        node: a mapping (an OmegaConf node is one), an instance of `params`, or None for defaults.
        where: the node's path in the config, for messages.

    Raises:
        ValueError: unknown key, wrong type or a value outside its range; states the value, the rule and the fix.
    """
    if isinstance(node, params):
        node.validate()
        return node
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ValueError(f"{where}={node!r}: must be a mapping of {', '.join(_field_types(params))}")
    known = _field_types(params)
    values = {}
    for key, value in node.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{where}.{key}={value!r}: no such parameter{hint} There are: {', '.join(known)}")
        values[key] = _converted(f"{where}.{key}", value, known[key])
    try:
        built = params(**values)
        built.validate()
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    return built


def require(holds: bool, name: str, value: Any, rule: str) -> None:
    """Raise ValueError `name=value: must be rule` unless the rule holds."""
    if not holds:
        raise ValueError(f"{name}={value!r}: must be {rule}")


def run_estimator(name: str, inputs: CreditInputs, params: EstimatorParams) -> Credit:
    """Run an estimator after checking that the signals it needs are there.

    The estimator sees the mask as bool and A_G as fp32, whatever the caller has.

    Raises:
        ValueError: the mask is not a (B, T) tensor.
        MissingSignalError: lists the missing signals.
        NonFiniteSignalError: NaN or infinity in A_G, in a signal, or in the resulting advantages.
    """
    chosen = get_estimator(name)
    missing = [signal for signal in chosen.needs(params) if getattr(inputs, signal) is None]
    if missing:
        raise MissingSignalError(_missing_message(name, missing, chosen.needs(params)))
    mask = as_mask(inputs.response_mask)
    check_finite("group advantage A_G", inputs.group_advantage, mask)
    inputs = dataclasses.replace(
        inputs, response_mask=mask, group_advantage=masked_float32(inputs.group_advantage, mask)
    )
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
        params: beta and the treatment of equal-reward groups.
        field: (B, T) fp32 token field, zero outside the mask. It is overwritten.
        metrics: the estimator's own metrics, to which the shared ones are added.
        tokens: what `Credit.tokens` should hold; `field` must not be among it.
    """
    mask, anchor = inputs.response_mask, inputs.group_advantage
    silenced = inputs.equal_reward_rows & params.mask_zero_variance_groups
    correction = field.mul_(params.beta)
    correction[silenced] = 0.0
    metrics = {**metrics, **_correction_metrics(correction, anchor, mask, silenced)}
    return Credit(correction.add_(anchor), metrics, tokens or {})


def masked_gap(inputs: CreditInputs) -> torch.Tensor:
    """delta_t as fp32, zero outside the mask: (B, T).

    Raises:
        ValueError: wrong shape.
        NonFiniteSignalError: NaN or infinity on a valid token.
    """
    gap = inputs.signal("log_prob_gap")
    check_shape("log_prob_gap", gap, inputs.response_mask)
    check_finite("log_prob_gap", gap, inputs.response_mask)
    return masked_float32(gap, inputs.response_mask)


def magnitude_metrics(prefix: str, values: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """`prefix/mean` and `prefix/p99` of |x| over the valid tokens of the batch."""
    mean, p99 = batch_magnitude(values, mask)
    return {f"{prefix}/mean": mean, f"{prefix}/p99": p99}


def correction_warning(metrics: Mapping[str, float]) -> str | None:
    """A sentence for the log when the correction outweighs the verifier's advantage, else None."""
    ratio = metrics.get("credit/correction_ratio", 0.0)
    if ratio <= CORRECTION_RATIO_LIMIT:
        return None
    return (
        f"credit/correction_ratio={ratio:.3g}: the teacher's correction is more than {CORRECTION_RATIO_LIMIT:g} times "
        "the group advantage, so the verifier no longer decides where the update goes; lower beta or raise gap_eps"
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


def _always(names: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    return lambda params: names


def _field_types(params: type[EstimatorParams]) -> dict[str, Any]:
    hints = typing.get_type_hints(params)
    return {field.name: hints[field.name] for field in dataclasses.fields(params)}


def _converted(where: str, value: Any, kind: Any) -> Any:
    """A config value as the field's type: ints become floats, everything else must already be of that type."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    if bool in options:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
    elif isinstance(value, bool):
        _wrong_type(where, value, options)
    elif float in options and isinstance(value, (int, float)):
        if math.isnan(value):
            _wrong_type(where, value, options)
        return float(value)
    elif int in options and isinstance(value, int):
        return value
    elif str in options and isinstance(value, str):
        return value
    _wrong_type(where, value, options)


def _wrong_type(where: str, value: Any, options: Sequence[type]) -> NoReturn:
    names = {bool: "true or false", float: "a number", int: "a whole number", str: "a word", type(None): "null"}
    hint = "; YAML reads 1e-6 as text, write 1.0e-6" if isinstance(value, str) and float in options else ""
    raise ValueError(f"{where}={value!r}: must be {' or '.join(names[option] for option in options)}{hint}")
