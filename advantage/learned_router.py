"""A router that learns which tokens the teacher should attract at: DASD's direction with a small head on it (ours).

The direction of a token is tanh(x_t + g(f_t)), x_t the entropy router's own argument (arXiv 2605.22263, Eq. 4) and g a
head of one hidden layer on four bounded features of the token: tanh(x_t), tanh of the normalised gap and of its size,
and the relative position.  Its last layer begins at zero, so that the first step is the entropy router bit for bit.

The head that decided a step is judged by the advantages of that step, which it had not seen, and takes one step of Adam
for those to come: it climbs the agreement of the correction with the verifier,

    J = sum_t A_t * tanh(x_t + g(f_t)) * s_t / sum_t |A_t * s_t|,      s_t = gate_t * tanh(normalised gap),

which is 1 where every pull goes where the verifier's advantage points and -1 where all go against it.  Weight decay on
the last layer draws it back to the entropy router.  Its weights and Adam's moments are all that is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advantage.segments import map_rows, relative_positions

FEATURES, WIDTH = 4, 8
PREFIX = "router/"  # of the names in the memory
_HIDDEN, _OUTPUT = ("hidden.weight", "hidden.bias"), ("output.weight", "output.bias")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Routed:
    """What the head sees of a batch and is judged by; (B, T) fp32 each, zero outside the mask.

    Attributes:
        argument: x_t.
        gate: the reliability gate, in [0, 1].
        normalized: the gap in units of its response's median.
        mask: bool.
    """

    argument: Tensor
    gate: Tensor
    normalized: Tensor
    mask: Tensor

    def features(self) -> Tensor:
        """(N, FEATURES) fp64 of the valid tokens, each in [-1, 1]."""
        (position,) = map_rows(lambda count: (2.0 * relative_positions(count) - 1.0,), self.mask)
        gap = torch.tanh(self.normalized)
        columns = (torch.tanh(self.argument), gap, gap.abs(), position)
        return torch.stack([column[self.mask].double() for column in columns], dim=-1)


def initial_head() -> dict[str, Tensor]:
    """A head that adds nothing: its hidden layer is drawn from a fixed seed, its last layer is zero."""
    generator = torch.Generator().manual_seed(0)
    return {
        PREFIX + "hidden.weight": torch.randn(WIDTH, FEATURES, generator=generator, dtype=torch.float64) / 2.0,
        PREFIX + "hidden.bias": torch.zeros(WIDTH, dtype=torch.float64),
        PREFIX + "output.weight": torch.zeros(WIDTH, dtype=torch.float64),
        PREFIX + "output.bias": torch.zeros((), dtype=torch.float64),
    }


def head_in(memory: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The head's part of an estimator's memory, or the initial one."""
    found = {name: value for name, value in (memory or {}).items() if name.startswith(PREFIX)}
    return found or initial_head()


def router_shift(head: Mapping[str, Tensor], routed: Routed) -> Tensor:
    """g(f_t), (B, T) fp32, zero outside the mask.

    Args:
        head: the weights of g, by the names of `initial_head`.
        routed: what the head sees of the batch.
    """
    shift = torch.zeros_like(routed.argument)
    shift[routed.mask] = _outputs(head, routed.features()).to(shift)
    return shift


def _outputs(head: Mapping[str, Tensor], features: Tensor) -> Tensor:
    hidden = torch.tanh(features @ head[PREFIX + "hidden.weight"].T + head[PREFIX + "hidden.bias"])
    return hidden @ head[PREFIX + "output.weight"] + head[PREFIX + "output.bias"]


def agreement(head: Mapping[str, Tensor], routed: Routed, advantage: Tensor) -> Tensor:
    """J of a head on a batch, a scalar in [-1, 1]; 0 where nothing is pulled or every A_G is zero.

    Args:
        head: the weights of g, by the names of `initial_head`.
        routed: what the head sees of the batch.
        advantage: (B, T) A_G.
    """
    mask = routed.mask
    pull = (routed.gate[mask] * torch.tanh(routed.normalized[mask])).double() * advantage[mask].double()
    total = pull.abs().sum()
    if not float(total) > 0:
        return total.new_zeros(())
    direction = torch.tanh(routed.argument[mask].double() + _outputs(head, routed.features()))
    return (direction * pull).sum() / total


def trained_head(
    head: Mapping[str, Tensor], routed: Routed, advantage: Tensor, *, learning_rate: float, decay: float
) -> tuple[dict[str, Tensor], float]:
    """The head after one step of Adam on a batch, with Adam's moments beside it, and J before that step.

    Args:
        head: as this returned it, or `initial_head`.
        routed: what the head sees of the batch.
        advantage: (B, T) A_G.
        learning_rate, decay: of Adam, and of the last layer's weights.
    """
    names = (*_HIDDEN, *_OUTPUT)
    weights = {name: head[PREFIX + name].clone().requires_grad_() for name in names}
    optimizer = torch.optim.AdamW(
        [
            {"params": [weights[name] for name in _HIDDEN], "weight_decay": 0.0},
            {"params": [weights[name] for name in _OUTPUT], "weight_decay": decay},
        ],
        lr=learning_rate,
    )
    for name, weight in weights.items():
        if f"{PREFIX}{name}/step" in head:
            optimizer.state[weight] = {m: head[f"{PREFIX}{name}/{m}"].clone() for m in _MOMENTS}
    with torch.enable_grad():
        value = agreement({PREFIX + name: weight for name, weight in weights.items()}, routed, advantage)
        if value.requires_grad:
            (-value).backward()
    if value.requires_grad:
        optimizer.step()
    moments = {
        f"{PREFIX}{name}/{m}": torch.as_tensor(state[m]).clone()
        for name, weight in weights.items()
        if (state := optimizer.state.get(weight))
        for m in _MOMENTS
    }
    return {**{PREFIX + name: weight.detach() for name, weight in weights.items()}, **moments}, float(value)
