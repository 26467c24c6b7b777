"""The arithmetic of ATESD's exposure controller (arXiv 2605.11458): reward of a decision, Beta policy, loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Beta

_RAW_MARGIN = 1e-4  # the density of a Beta is taken this far from its ends


def lookahead_reward(
    losses: Sequence[float | None], grounded: Sequence[float | None], gamma: float
) -> tuple[float, float | None]:
    """(G_lp, G_gt) of eq. 8 for one decision.

    A loss that is missing is skipped, so its progress falls to the next one measured; G_gt averages over what was
    measured and is None where nothing was.

    Args:
        losses: ℓ_{t0} … ℓ_{t0+L} (L + 1 values); None where not measured.
        grounded: g_{t0+1} … g_{t0+L}; None where not measured.
        gamma: γ, the discount of a later update.
    """
    progress, previous = 0.0, losses[0]
    for i, loss in enumerate(losses[1:]):
        if loss is None:
            continue
        if previous is not None:
            progress += gamma**i * max(0.0, previous - loss)
        previous = loss
    pairs = [(gamma**i, g) for i, g in enumerate(grounded) if g is not None]
    total = sum(weight for weight, _ in pairs)
    return progress, sum(weight * g for weight, g in pairs) / total if total > 0.0 else None


def standardise(rewards: Tensor, eps: float) -> Tensor:
    """(R − mean) / (std + ε) with the population's standard deviation (eq. 9).

    Args:
        rewards: (B,).
        eps: ε.
    """
    return (rewards - rewards.mean()) / (rewards.std(unbiased=False) + eps)


def concentrations(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) = 1 + softplus of the policy's two outputs (eq. 7); outputs (..., 2)."""
    both = 1.0 + nn.functional.softplus(outputs)
    return both[..., 0], both[..., 1]


def controller_loss(
    outputs: Tensor, raw: Tensor, advantages: Tensor, *, entropy_coef: float, entropy_target: float
) -> Tensor:
    """Eq. 9: REINFORCE plus the cap on the entropy, a scalar.

    Args:
        outputs: (B, 2) of the policy.
        raw: (B,) samples before the clip.
        advantages: (B,) standardised rewards.
        entropy_coef: c_t, the weight of the cap.
        entropy_target: H_target; only what the Beta's entropy has above it is penalised.
    """
    policy = Beta(*concentrations(outputs), validate_args=False)
    log_prob = policy.log_prob(raw.clamp(_RAW_MARGIN, 1.0 - _RAW_MARGIN))
    excess = (policy.entropy() - entropy_target).clamp(min=0.0)
    return -(advantages * log_prob).mean() + entropy_coef * excess.square().mean()


def policy_network(features: int, hidden: int, uniform: Tensor) -> nn.Sequential:
    """The policy features → hidden → 2 with tanh, its head at zero, so that it begins as Beta(1.693, 1.693).

    fp64, so that its arithmetic never is what two runs differ by.

    Args:
        features: number of inputs.
        hidden: width of the hidden layer.
        uniform: (hidden · (features + 1),) numbers in [0, 1), from which the first layer is made.
    """
    first: nn.Linear = nn.utils.skip_init(nn.Linear, features, hidden, dtype=torch.float64)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, hidden, 2, dtype=torch.float64)
    drawn = (uniform * 2 - 1) / features**0.5
    with torch.no_grad():
        first.weight.copy_(drawn[: hidden * features].reshape(hidden, features))
        first.bias.copy_(drawn[hidden * features :])
        head.weight.zero_()
        head.bias.zero_()
    return nn.Sequential(first, nn.Tanh(), head)
