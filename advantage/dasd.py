"""DASD, direction-adaptive self-distillation (arXiv 2605.22263, section 4, Algorithm 1).

The privileged teacher's pressure on a token is attractive where the student is certain and repulsive where it is not:

    omega_t = tanh((tau_rho - H_t) / (MAD(H) + eps)) * sigmoid(|gap_t| - 1),      A_t = A_G + beta * omega_t * gap_t

with gap_t = delta_t / (median|delta| + eps), everything per trajectory over its valid tokens.

Departures from the paper, each a named parameter: its one epsilon is two (`gap_eps` is a floor in nats under the scale
of the gaps, `entropy_eps` one under the spread of the entropies), because with 1e-6 a trajectory of mostly certain
tokens has a median near zero and gaps of thousands; correction of groups whose rewards are all equal can be masked.
A floor in nats, and a beta, mean something else to every model. Unless they are given, the floor is `gap_eps_share` of
the batch's mean |delta|, and beta what makes the correction `target_ratio` of A_G: scaling all gaps by a factor then
changes nothing, as the paper's division by the median intends.
What Tables 12-14 leave unsaid about the ablated routers, directions and gates is decided here and marked "ours".

Two routers are measured in the pass that scores the student's tokens (workers/training/engine.py).  "gradient_norm" is
Table 12's norm of the gradient of log pi(o_t), by the output head's weight alone (ours): by all weights it would take a
backward pass for every token; the head's is exact in closed form and costs another two passes over probabilities that
are there.  "attention_entropy" is its mean attention-head entropy at the position whose output predicts o_t, as H_t is,
over the heads of the last layer (ours: the paper names no layer), whose weights are made again for the response's rows:
(response tokens x sequence tokens x heads) more products of a head's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from advantage.checks import as_mask, check_finite, check_shape
from advantage.estimators import (
    AdditiveParams,
    Credit,
    CreditInputs,
    additive_credit,
    estimator,
    magnitude_metrics,
    masked_gap,
)
from advantage.labels import Metric, TokenField
from advantage.learned_router import Routed, head_in, router_shift, trained_head
from advantage.params import require, require_one
from advantage.segments import (
    Tokens,
    batch_abs_mean,
    map_rows,
    mean_abs_deviation,
    pack,
    quantile,
    relative_positions,
    row_median,
    sigmoid,
)
from advantage.signals import Signals
from advantage.token_weights import token_weight

# Routers whose signal is one of `Signals` under the router's own name, and those that are handed a `router_signal`.
MEASURED = ("gradient_norm", "attention_entropy")
SIGNALLED = ("token_frequency", *MEASURED, "external")
ROUTERS = ("entropy", "position", *SIGNALLED, "learned")
DIRECTIONS = ("tanh", "hard", "linear", "constant")
GATES = ("auto", "gap", "none", "fixed", "magnitude")
ARMS = ("low", "high")


def direction_coefficient(
    entropy: torch.Tensor | None,
    log_prob_gap: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    router_quantile: float = 0.2,
    eps: float = 1e-6,
    gap_eps: float | None = None,
    entropy_eps: float | None = None,
    gap_clip: float | None = None,
    router: str = "entropy",
    router_signal: torch.Tensor | None = None,
    router_shift: torch.Tensor | None = None,
    direction: str = "tanh",
    constant: float = 1.0,
    gate: str = "auto",
    gate_threshold: float = 0.5,
    deviation: str = "mean",
    swapped_arm: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """DASD's signed coefficient omega_t (Eq. 4) and normalised gap delta-bar_t; their product is the token field.

    Args:
        entropy: H_t, (B, T) nats, of the student over the full vocabulary. May be None for routers that do not use it.
        log_prob_gap: delta_t = log p_T(o_t) - log p_S(o_t), (B, T) nats.
        response_mask: (B, T), non-zero on valid tokens; may have holes.
        router_quantile: rho, the per-trajectory quantile of the router signal at which the direction changes sign.
        eps: the paper's epsilon; sets both floors below unless they are given.
        gap_eps: floor in nats added to median|delta|.
        entropy_eps: floor in nats (or units of the router signal) added to its mean absolute deviation.
        gap_clip: clamp delta-bar to [-gap_clip, gap_clip] before the gate. Not in the paper; None is off.
        router: what takes the place of H_t (Table 12). "position": `position_signal`. "token_frequency": pass
            `inverse_frequency_signal(...)` as `router_signal`. "gradient_norm", "attention_entropy": pass that one of
            `advantage.Signals` as `router_signal`. "external": any other. High values are forks (repulsion).
            "learned": the entropy, with `router_shift` added to the tanh's argument (`advantage.learned_router`).
        router_signal: (B, T); required by every router but "entropy", "position" and "learned", refused with those.
        router_shift: (B, T); required by "learned", which wants direction="tanh".
        direction: "tanh" (Eq. 4); "hard": sign(tau - H); "linear": (tau - H)/(MAD + eps) clamped to [-1, 1] (Table 13
            says only "clipped linear map from normalized entropy": this normalisation is ours); "constant".
        constant: the value of omega's direction where direction="constant": +1 attracts, -1 repels.
        gate: "gap": sigmoid(|delta-bar| - 1); "none": 1; "fixed": 1[|delta| > gate_threshold], on the raw gap in nats;
            "magnitude": min(|delta-bar|, 1): the paper's "use |delta-bar| without thresholding", capped (ours) so that
            omega stays in [-1, 1] as Eq. 3 requires. "auto": "gap", except "none" where direction="constant", so that
            omega is exactly +1 or -1 as in the limits of section 4. Table 13 keeps the gate: ask for "gap".
        gate_threshold: c of the fixed gate, nats. The paper hand-tunes it and gives no value; 0.5 is ours.
        deviation: centre of the mean absolute deviation, "mean" or "median".
        swapped_arm: which arm's direction is turned around (Fig. 6b,c). "low": tokens below tau_rho are repelled too,
            -|omega| everywhere; "high": those above it are attracted too, |omega|. Wants a router that is not learned,
            and no constant direction.

    Returns:
        omega and delta-bar, both (B, T) fp32, zero outside the mask, detached.

    Raises:
        ValueError: if a shape or an option is wrong.
        NonFiniteSignalError: if a signal that is used has NaN or infinity on a valid token.
    """
    _check_options(router, direction, constant, gate, gate_threshold, deviation, router_quantile, gap_clip, swapped_arm)
    gap_floor = eps if gap_eps is None else gap_eps
    entropy_floor = eps if entropy_eps is None else entropy_eps
    _check_floor("eps" if gap_eps is None else "gap_eps", gap_floor)
    _check_floor("eps" if entropy_eps is None else "entropy_eps", entropy_floor)
    mask = as_mask(response_mask)
    check_shape("log_prob_gap", log_prob_gap, mask)
    check_finite("log_prob_gap", log_prob_gap, mask)
    # A constant direction needs no router, and its signals may then be absent.
    signal = None if direction == "constant" else _router_signal(router, entropy, router_signal, mask)
    if (router == "learned") != (router_shift is not None):
        raise ValueError(f"router={router!r}: router_shift, a (B, T) tensor, belongs to router='learned' and needs it")

    resolved = resolve_gate(gate, direction)

    def trajectory(
        count: int, delta: Tokens, entropies: Tokens | None = None, shift: Tokens | None = None
    ) -> tuple[Tokens, Tokens]:
        """Algorithm 1, lines 13-20, on the valid tokens of one response."""
        normalized = _ratio(delta, quantile(np.abs(delta), 0.5) + gap_floor)
        if gap_clip is not None:
            normalized = normalized.clip(-gap_clip, gap_clip)
        if entropies is None:
            omega = np.full(count, constant, dtype=np.float32)
        else:
            if direction == "hard":
                omega = np.sign(_below(entropies, router_quantile))
            else:
                omega = _argument(entropies, router_quantile, entropy_floor, deviation)
                if shift is not None:
                    omega = omega + shift
                omega = np.tanh(omega) if direction == "tanh" else omega.clip(-1.0, 1.0)
            if swapped_arm is not None:
                omega = -np.abs(omega) if swapped_arm == "low" else np.abs(omega)
        if resolved == "gap":
            omega *= sigmoid(np.abs(normalized) - 1.0)
        elif resolved == "fixed":
            omega *= np.abs(delta) > gate_threshold
        elif resolved == "magnitude":
            omega *= np.abs(normalized).clip(max=1.0)
        return omega, normalized

    signals = [values for values in (log_prob_gap, signal, router_shift) if values is not None]
    omega, normalized = map_rows(trajectory, mask, *signals, outputs=2)
    return omega, normalized


def _below(entropies: Tokens, fraction: float) -> Tokens:
    """tau_rho - H_t, in fp64: where entropies lie close together, fp32 would round tau by as much as their distance."""
    return quantile(entropies, fraction) - entropies.astype(np.float64)


def _argument(entropies: Tokens, fraction: float, floor: float, deviation: str) -> Tokens:
    """(tau_rho - H_t) / (MAD + eps), fp32."""
    return _ratio(_below(entropies, fraction), mean_abs_deviation(entropies, deviation) + floor).astype(np.float32)


def position_signal(response_mask: torch.Tensor) -> torch.Tensor:
    """Router signal of Table 12's position proxy, "sinusoidal relative position": sin(pi * u_t), (B, T) fp32.

    u_t = (t - 0.5) / L is the token's relative position among its row's valid tokens. The half wave is ours: the middle
    of a response counts as forking, its setup and its answer as scaffolding. Zero outside the mask.
    """
    (signal,) = map_rows(lambda count: (np.sin(math.pi * relative_positions(count)),), response_mask)
    return signal


def inverse_frequency_signal(
    token_ids: torch.Tensor, response_mask: torch.Tensor, token_counts: torch.Tensor
) -> torch.Tensor:
    """Router signal of Table 12's token-frequency proxy: minus the log of the token's corpus frequency, (B, T) nats.

    The paper routes on the "inverse training-corpus frequency"; its logarithm (ours) orders the tokens alike, so the
    quantile falls on the same token, and keeps the spread from being that of the rarest token alone. Counts are
    smoothed by one, so a token that never occurred is the rarest.

    Args:
        token_ids: (B, T) integers.
        response_mask: (B, T), non-zero on valid tokens.
        token_counts: (V,) how often each token id occurs in the training corpus.

    Raises:
        ValueError: if shapes disagree, or a valid token id lies outside [0, V).
    """
    mask = as_mask(response_mask)
    if token_ids.shape != mask.shape:
        raise ValueError(f"token_ids has shape {tuple(token_ids.shape)} but response_mask {tuple(mask.shape)}")
    if token_counts.dim() != 1 or len(token_counts) == 0:
        raise ValueError(f"token_counts must have shape (vocabulary,), got {tuple(token_counts.shape)}")
    ids = torch.where(mask, token_ids, 0).long()
    if bool(((ids < 0) | (ids >= len(token_counts))).any()):
        raise ValueError(
            f"token_ids range over [{int(ids.min())}, {int(ids.max())}] but token_counts covers {len(token_counts)} "
            "ids: count over the whole vocabulary of the model that produced the ids"
        )
    smoothed = token_counts.to(torch.float64) + 1.0
    surprise = -torch.log(smoothed / smoothed.sum()).to(torch.float32)
    return torch.where(mask, surprise.to(ids.device)[ids], 0.0)


def resolve_gate(gate: str, direction: str) -> str:
    """The gate that "auto" stands for under a direction; any other gate is returned as it is.

    Args:
        gate: one of `GATES`.
        direction: one of `DIRECTIONS`.
    """
    if gate != "auto":
        return gate
    return "none" if direction == "constant" else "gap"


def _router_signal(
    router: str, entropy: torch.Tensor | None, router_signal: torch.Tensor | None, mask: torch.Tensor
) -> torch.Tensor:
    """The checked (B, T) signal that takes the place of H_t."""
    if router in SIGNALLED:
        if router_signal is None:
            raise ValueError(f"router={router!r} needs router_signal, a (B, T) tensor")
        name, signal = "router_signal", router_signal
    elif router_signal is not None:
        raise ValueError(f"router_signal is only used by router={', '.join(SIGNALLED)}, got router={router!r}")
    elif router == "position":
        return position_signal(mask)
    elif entropy is None:
        raise ValueError("router='entropy' needs entropy, a (B, T) tensor")
    else:
        name, signal = "entropy", entropy
    check_shape(name, signal, mask)
    check_finite(name, signal, mask)
    return signal


def _ratio(tokens: Tokens, scale: float) -> Tokens:
    """tokens / scale, with 0 / 0 = 0: a floor of zero over a row of zeros (no gap, no spread) means no correction."""
    divisor = tokens.dtype.type(scale)
    return tokens / divisor if divisor > 0 else np.where(tokens == 0, tokens, np.copysign(np.inf, tokens))


def _check_options(
    router: str,
    direction: str,
    constant: float,
    gate: str,
    gate_threshold: float,
    deviation: str,
    router_quantile: float,
    gap_clip: float | None,
    swapped_arm: str | None,
) -> None:
    require(router in ROUTERS, "router", router, f"one of {', '.join(ROUTERS)}")
    require(direction in DIRECTIONS, "direction", direction, f"one of {', '.join(DIRECTIONS)}")
    require(router != "learned" or direction == "tanh", "direction", direction, "tanh with router=learned")
    require(constant in (1, -1), "constant", constant, "+1 (attraction) or -1 (repulsion)")
    require(gate in GATES, "gate", gate, f"one of {', '.join(GATES)}")
    require(0.0 <= gate_threshold < math.inf, "gate_threshold", gate_threshold, "a number of nats, 0 or more")
    require(deviation in ("mean", "median"), "deviation", deviation, "'mean' or 'median'")
    require(0.0 <= router_quantile <= 1.0, "router_quantile", router_quantile, "in [0, 1]")
    require(gap_clip is None or 0.0 < gap_clip < math.inf, "gap_clip", gap_clip, "positive, or null to clip nothing")
    require(swapped_arm in (None, *ARMS), "swapped_arm", swapped_arm, f"one of {', '.join(ARMS)}, or null for neither")
    arms = swapped_arm is None or (direction != "constant" and router != "learned")
    require(
        arms, "swapped_arm", swapped_arm, "null with direction=constant, which has no arms, and with router=learned"
    )


def _check_floor(name: str, value: float) -> None:
    require(0.0 <= value < math.inf, name, value, "finite, 0 or more; the paper's value is 1e-6")


@dataclass(frozen=True)
class DasdParams(AdditiveParams):
    """Parameters of `algorithm.dasd`; `direction_coefficient` has the formulas.

    The floors, the correction's size and `mask_zero_variance_groups` are ours: the paper names no beta and no rule for
    groups, and takes one small epsilon (1e-6, method=dasd_paper_literal) for both floors. What was measured about
    these values is in recipes/dasd/README.md.

    Attributes:
        router: what decides the direction: one of `ROUTERS`.
        router_quantile: rho, the quantile of a response's router signal at which the direction changes sign.
        router_learning_rate: of router=learned. Ours.
        router_decay: of what router=learned adds to the entropy. Ours.
        direction: how: tanh, hard (the sign), linear (clamped), or constant.
        constant: the direction where direction=constant: +1 attracts, -1 repels.
        gate: how strong by the size of the gap: auto, gap, none, fixed, or magnitude.
        gate_threshold: nats above which gate=fixed lets a gap through.
        gap_eps: floor in nats under the median |delta| of a response, which gaps are measured in; null:
            `gap_eps_share` sets it.
        gap_eps_share: the floor as a share of the batch's mean |delta| over the tokens that have a teacher; in force
            where `gap_eps` is null. Ours.
        entropy_eps: floor in nats under the spread of a response's entropies.
        gap_clip: bound of the normalised gap; null is off.
        deviation: what the mean absolute deviation of the entropies is about: mean or median.
        swapped_arm: which arm is turned around: low (certain tokens are repelled too), or high (uncertain ones
            are attracted too); null for neither. Fig. 6b,c.
        normalise_gap: false takes the gap in nats as it is, Proposition 1; omega stays.
    """

    beta: float | None = None
    target_ratio: float | None = 0.005
    router: str = "entropy"
    router_quantile: float = 0.2
    router_learning_rate: float = 0.01
    router_decay: float = 0.01
    direction: str = "tanh"
    constant: float = 1.0
    gate: str = "auto"
    gate_threshold: float = 0.5
    gap_eps: float | None = None
    gap_eps_share: float | None = 0.1
    entropy_eps: float = 0.1
    gap_clip: float | None = None
    deviation: str = "mean"
    swapped_arm: str | None = None
    normalise_gap: bool = True

    def validate(self) -> None:
        """Refuse options and numbers outside their range; `gap_eps` must be positive in training."""
        super().validate()
        _check_options(
            self.router,
            self.direction,
            self.constant,
            self.gate,
            self.gate_threshold,
            self.deviation,
            self.router_quantile,
            self.gap_clip,
            self.swapped_arm,
        )
        # Zero is allowed in the function but not in training, where one trajectory without gaps would stop the run.
        floor = self.gap_eps
        require(floor is None or 0.0 < floor < math.inf, "gap_eps", floor, "positive and finite; the paper's is 1e-6")
        require(
            self.gap_eps_share is None or 0.0 < self.gap_eps_share < math.inf,
            "gap_eps_share",
            self.gap_eps_share,
            "positive and finite, or null",
        )
        require_one(self, "gap_eps", "gap_eps_share")
        _check_floor("entropy_eps", self.entropy_eps)
        rate = self.router_learning_rate
        require(0.0 < rate < math.inf, "router_learning_rate", rate, "positive and finite")
        require(0.0 <= self.router_decay < math.inf, "router_decay", self.router_decay, "finite, 0 or more")

    @property
    def remembers(self) -> bool:
        """Whether beta follows a ratio, or the router learns."""
        return super().remembers or self.weight_remembers

    @property
    def weight_remembers(self) -> bool:
        """Whether the router learns."""
        return self.router == "learned"

    @property
    def idle(self) -> frozenset[str]:
        """Those of every correction, and the floor that is not in force."""
        return super().idle | {"gap_eps" if self.gap_eps is None else "gap_eps_share"}


def _signals_needed(params: DasdParams) -> tuple[str, ...]:
    if params.direction == "constant":
        return ("log_prob_gap",)
    by_router = {
        "entropy": ("entropy",),
        "position": (),
        "token_frequency": ("token_ids", "token_counts"),
        "external": ("router_signal",),
        "learned": ("entropy",),
    }
    return ("log_prob_gap", *by_router.get(params.router, (params.router,)))


def gap_floor(gap: torch.Tensor, taught: torch.Tensor, params: DasdParams) -> float:
    """The floor under median|delta|, nats: `gap_eps`, or its share of the mean |delta| over the taught tokens.

    Args:
        gap: (B, T) nats, of the global batch.
        taught: (B, T) bool, valid tokens of responses that have a teacher.
        params: of DASD, with the floor or the share.

    Raises:
        NonFiniteSignalError: if a mean is needed, and the gap of a taught token is not finite.
    """
    if params.gap_eps is not None:
        return params.gap_eps
    check_finite("log_prob_gap", gap, taught)
    return cast(float, params.gap_eps_share) * batch_abs_mean(gap, taught)  # validated: one of the two is given


def omega_and_gap(
    signals: Signals, response_mask: torch.Tensor, params: DasdParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """omega_t and delta-bar_t, (B, T) fp32 each, as `direction_coefficient` makes them under these parameters.

    The one place where parameters meet signals: the credit below and the divergence's weight both start here.

    Args:
        signals: `log_prob_gap`, and what the router needs.
        response_mask: (B, T), non-zero on valid tokens.
        params: the values of `algorithm.dasd`.
    """
    router_signal = None
    if params.direction != "constant" and params.router == "token_frequency":
        router_signal = inverse_frequency_signal(
            signals.signal("token_ids"), response_mask, signals.signal("token_counts")
        )
    elif params.direction != "constant" and params.router in SIGNALLED:
        router_signal = signals.signal("router_signal" if params.router == "external" else params.router)
    shift = None
    if params.router == "learned":
        shift = router_shift(head_in(signals.memory), routed_by_entropy(signals, response_mask, params))
    gap = _taught_gap(signals)
    return direction_coefficient(
        signals.entropy if params.router in ("entropy", "learned") else None,
        gap,
        response_mask,
        router_quantile=params.router_quantile,
        gap_eps=gap_floor(gap, signals.taught(response_mask), params),
        entropy_eps=params.entropy_eps,
        gap_clip=params.gap_clip,
        router=params.router,
        router_signal=router_signal,
        router_shift=shift,
        direction=params.direction,
        constant=params.constant,
        gate=params.gate,
        gate_threshold=params.gate_threshold,
        deviation=params.deviation,
        swapped_arm=params.swapped_arm,
    )


def _taught_gap(signals: Signals) -> torch.Tensor:
    """The gap, zero in responses without a teacher."""
    gap = signals.signal("log_prob_gap")
    return gap if signals.has_teacher is None else gap.masked_fill(~signals.has_teacher.to(gap.device)[:, None], 0.0)


def routed_by_entropy(signals: Signals, response_mask: torch.Tensor, params: DasdParams) -> Routed:
    """What a learned router starts from: the entropy router's argument, and gate and gap without any direction.

    Args:
        signals: the gap and the student's entropy, (B, T) in nats.
        response_mask: (B, T) bool.
        params: of DASD.
    """
    gap, entropy = _taught_gap(signals), signals.signal("entropy")
    check_shape("entropy", entropy, response_mask)
    check_finite("entropy", entropy, response_mask)
    gate, normalized = direction_coefficient(
        None,
        gap,
        response_mask,
        gap_eps=gap_floor(gap, signals.taught(response_mask), params),
        gap_clip=params.gap_clip,
        direction="constant",
        gate=resolve_gate(params.gate, params.direction),
        gate_threshold=params.gate_threshold,
    )

    def trajectory(count: int, entropies: Tokens) -> tuple[Tokens]:
        return (_argument(entropies, params.router_quantile, params.entropy_eps, params.deviation),)

    (argument,) = map_rows(trajectory, response_mask, entropy)
    return Routed(argument, gate, normalized, response_mask)


@token_weight("dasd", params=DasdParams, needs=_signals_needed)
def dasd_weight(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: DasdParams
) -> torch.Tensor:
    """The signed omega_t of Eq. 4 as the factor of a token's divergence (Eq. 5); beta is the loss's coefficient.

    Args:
        signals: `log_prob_gap`, and what the router needs.
        response_mask: (B, T), non-zero on valid tokens.
        equal_reward_rows: (B,) bool, rows of groups whose rewards are all equal.
        params: the values of `algorithm.dasd`.
    """
    omega, _ = omega_and_gap(signals, response_mask, params)
    if params.mask_zero_variance_groups:
        omega[equal_reward_rows] = 0.0
    return omega


@estimator(
    "dasd",
    params=DasdParams,
    needs=_signals_needed,
    shows=("beta", "target_ratio", "gap_eps", "gap_eps_share", "entropy_eps", "router_quantile"),
    tokens=(TokenField("omega", "ω", "direction: positive attracts to the teacher, negative repels", 1.0),),
    metrics=(
        Metric(
            "credit/omega/positive_share",
            "Share of positive ω",
            "tokens that are drawn to the teacher; the others are pushed away",
            line="share",
            percent=True,
            idle=1.0,
        ),
        Metric(
            "credit/router/agreement",
            "Agreement of the learned router",
            "of the teacher's pulls with the verifier's advantages, judged before it learns from them; in [-1, 1]",
            line="agreement",
            short="agree",
        ),
    ),
)
def dasd_credit(inputs: CreditInputs, params: DasdParams) -> Credit:
    """A_t = A_G + beta * omega_t * delta-bar_t (Eq. 8), or * delta_t (Proposition 1).

    Args:
        inputs: A_G, `log_prob_gap`, and what the router needs.
        params: the values of `algorithm.dasd`.
    """
    mask = inputs.response_mask
    omega, normalized = omega_and_gap(inputs, mask, params)
    gap, taught = inputs.signal("log_prob_gap").detach(), inputs.taught(mask)
    gap_scale = row_median(gap.abs(), mask)[taught.any(dim=-1)]
    tokens = pack(omega, mask)
    below_eps = (gap_scale < gap_floor(gap, taught, params)).float()
    metrics = {
        **magnitude_metrics("credit/gap_normalized", normalized, mask),
        "credit/gap_scale/mean": float(gap_scale.mean()) if len(gap_scale) else 0.0,
        "credit/gap_scale/below_eps_share": float(below_eps.mean()) if len(gap_scale) else 0.0,
        "credit/omega/mean": float(tokens.mean(dtype=np.float64)) if len(tokens) else 0.0,
        "credit/omega/positive_share": float((tokens > 0).mean()) if len(tokens) else 0.0,
    }
    memory: dict[str, torch.Tensor] = {}
    if params.router == "learned":
        memory, metrics["credit/router/agreement"] = trained_head(
            head_in(inputs.memory),
            routed_by_entropy(inputs, mask, params),
            inputs.group_advantage,
            learning_rate=params.router_learning_rate,
            decay=params.router_decay,
        )
    field = normalized if params.normalise_gap else masked_gap(inputs)
    credit = additive_credit(inputs, params, field.mul_(omega), metrics, {"omega": omega})
    return replace(credit, memory=credit.memory | memory)
