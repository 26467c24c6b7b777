"""Whether a run is falling apart: entropy, response length or reward outside a band for several steps in a row.

A policy that loses its entropy, babbles to the length limit or answers with nothing does so within a few steps, and the
checkpoints that are saved afterwards are of no use.  The bands are relative to running baselines of the same run, so
they need no knowledge of model or task: entropy and length have the weighted mean of the steps before; reward has the
highest that this mean has been, because a reward that was reached and lost is the sign, however slowly it goes.  Values
outside a band do not move its baseline, or a collapse would become its own measure.  All numbers are ours.

Pure: `watch` is a function of what was remembered and of one step's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from advantage.params import load_params, require
from recipes.common.metric_names import ENTROPY, LENGTH, REWARD

SIGNS = {"entropy": ENTROPY, "length": LENGTH, "reward": REWARD}  # what is watched, and its metric


@dataclass(frozen=True)
class CollapseParams:
    """`self_distill.collapse`.

    Attributes:
        patience: steps in a row outside a band that are a collapse; None watches nothing.
        stop: end the run then, with a checkpoint; else it is a warning.
        warmup: steps that a baseline is made of before anything is held against it.
        decay: what a step leaves of the weight of those before it in a baseline's mean.
        entropy_low, entropy_high, length_low, length_high: the bands, as factors of the baseline.
        reward_low: share of the best running mean that the reward must keep.
    """

    patience: int | None = 5
    stop: bool = False
    warmup: int = 5
    decay: float = 0.9
    entropy_low: float = 0.25
    entropy_high: float = 4.0
    length_low: float = 0.25
    length_high: float = 4.0
    reward_low: float = 0.5

    def validate(self) -> None:
        """Refuse a setting that is not usable.

        Raises:
            ValueError: if there is one; the message has value and rule.
        """
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more, or null for never")
        require(
            not self.stop or self.patience is not None, "stop", self.stop, "false where patience=null watches nothing"
        )
        require(self.warmup >= 1, "warmup", self.warmup, "1 or more: a baseline is made of steps")
        require(0.0 <= self.decay < 1.0, "decay", self.decay, "in [0, 1)")
        for name in ("entropy_low", "length_low", "reward_low"):
            require(0.0 <= getattr(self, name) < 1.0, name, getattr(self, name), "in [0, 1), below the baseline")
        for name in ("entropy_high", "length_high"):
            require(getattr(self, name) > 1.0, name, getattr(self, name), "above 1, the baseline")


def collapse_params(self_distill: Any) -> CollapseParams:
    """`self_distill.collapse` of a configuration, checked.

    Raises:
        ValueError: if a setting is not usable.
    """
    return load_params(CollapseParams, self_distill.get("collapse"), where="self_distill.collapse")


@dataclass(frozen=True)
class Baseline:
    """What is remembered of one sign.

    Attributes:
        total, weight: decayed sums of its values inside the band and of their weights; the mean is their quotient.
        seen: how many values.
        best: highest mean since the warm-up was over.
        outside: steps in a row outside the band, up to the last one.
    """

    total: float = 0.0
    weight: float = 0.0
    seen: int = 0
    best: float | None = None
    outside: int = 0

    @property
    def mean(self) -> float:
        """Of its values inside the band, later ones weighing more; 0 before the first."""
        return self.total / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class Watch:
    """What a run's watch remembers; a checkpoint keeps it as `to_json` writes it.

    Attributes:
        signs: what is remembered of each of `SIGNS`.
    """

    signs: Mapping[str, Baseline] = field(default_factory=lambda: {name: Baseline() for name in SIGNS})

    def to_json(self) -> dict[str, Any]:
        """As plain numbers by name."""
        return {name: vars(baseline) for name, baseline in self.signs.items()}

    @staticmethod
    def from_json(node: Mapping[str, Any]) -> Watch:
        """What `to_json` wrote; a sign that it does not have begins anew."""
        return Watch({name: Baseline(**node.get(name, {})) for name in SIGNS})

    @property
    def steps_outside(self) -> int:
        """The longest time that a sign has been outside its band, steps."""
        return max(baseline.outside for baseline in self.signs.values())

    def collapsed(self, params: CollapseParams) -> list[str]:
        """Names of the signs that have been outside for as long as `patience`."""
        if params.patience is None:
            return []
        return [name for name, baseline in self.signs.items() if baseline.outside >= params.patience]

    def level(self, name: str) -> float:
        """What a sign is measured against."""
        baseline = self.signs[name]
        return baseline.mean if name != "reward" or baseline.best is None else baseline.best


def watch(before: Watch, values: Mapping[str, float | None], params: CollapseParams) -> Watch:
    """What is remembered after one more step.

    Args:
        before: what was remembered until then.
        values: of the step, by the names of `SIGNS`; a sign without a value stays as it is.
        params: the bands.
    """
    signs = dict(before.signs)
    for name, value in values.items():
        if value is not None:
            signs[name] = _after(name, value, before, params)
    return Watch(signs)


def _after(name: str, value: float, before: Watch, params: CollapseParams) -> Baseline:
    baseline = before.signs[name]
    warm = baseline.seen >= params.warmup
    if warm and not _inside(name, value, before.level(name), params):
        return replace(baseline, outside=baseline.outside + 1)
    moved = replace(
        baseline,
        total=params.decay * baseline.total + value,
        weight=params.decay * baseline.weight + 1.0,
        seen=baseline.seen + 1,
        outside=0,
    )
    if moved.seen < params.warmup:
        return moved
    return replace(moved, best=moved.mean if baseline.best is None else max(baseline.best, moved.mean))


def _inside(name: str, value: float, level: float, params: CollapseParams) -> bool:
    if name == "reward":  # rewards may be negative: a fall is measured by the level's size
        return value >= level - (1.0 - params.reward_low) * abs(level)
    low, high = getattr(params, f"{name}_low"), getattr(params, f"{name}_high")
    return low * level <= value <= high * level
