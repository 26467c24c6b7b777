"""ATESD's exposure controller: how much of the reference the teacher is shown next (arXiv 2605.11458, §4.2-4.3).

One exposure α for all samples, held for H student updates, drawn from a Beta policy over six statistics of training:

    (a, b) = 1 + softplus(f(s)),   α ~ Beta(a, b), clipped to [exposure_min, exposure_max]                       (eq. 7)

Each decision is credited by what the student does over the next L updates, and the policy is trained by REINFORCE on
batches of completed decisions:

    R(t0) = Σ_{i=1..L} γ^{i−1} max(0, ℓ_{t0+i−1} − ℓ_{t0+i}) + λ_gt · Σ γ^{i−1} g_{t0+i} / Σ γ^{i−1}         (eq. 8)
    loss  = −mean_j A_j log π(α_j | s_j) + c_t · max(0, H[π] − H_target)²,   A = (R − mean R) / (std R + ε)     (eq. 9)

ℓ_t is the distillation loss after update t, g_t the mean log-probability that the exposed teacher gives to verified
reference tokens.  Mismatch is state and diagnostic, never reward.

The paper gives the equations, L = 20 and "a 2-layer MLP on six statistics"; every other number is a default of ours and
a field of `ControllerConfig`.  Also ours: population standard deviation; log π at the *raw* sample (before the clip to
the exposure range) clamped to [1e-4, 1 − 1e-4]; the entropy penalty averaged over the batch's states; statistics not
yet measured enter the state as 0; credit "delayed" is the undiscounted progress over the hold window (its Table 2
only calls it a short delayed signal); before the first update no loss is known, so a window that opens there starts
counting progress at the first loss it sees.

With ℓ the training loss, lowering α lowers ℓ mechanically and is credited as progress.  progress_signal =
"fixed_exposure_probe" credits the decisions by a loss measured at one fixed exposure on held-out items instead.

The controller draws from a generator of its own and saves everything it holds (policy, optimiser, generator, averages,
held action, open windows, log), in safetensors and JSON: a run that is stopped and resumed makes the same decisions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta

MODES = ("learned", "fixed", "random")
CREDITS = ("one_step", "delayed", "discounted", "discounted+grounded")
PROGRESS_SIGNALS = ("training_loss", "fixed_exposure_probe")
FEATURES = ("progress", "previous_exposure", "loss_ema", "mismatch_ema", "probe_nll_ema", "confidence")

_RAW_MARGIN = 1e-4  # the density of a Beta is taken this far from its ends
_FILE_STEM = "exposure_controller"
# A saved state means something else under another value of these.
_STRUCTURAL = ("mode", "credit", "progress_signal", "hold", "lookahead", "decisions_per_update", "hidden")


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller; the paper's section beside each, "ours" where it is silent.

    total_steps: student updates T of the run, for the progress feature and the entropy schedule.
    mode: learned; fixed (always `fixed_exposure`); random (uniform on the range, redrawn every hold): Table 2 B.
    credit: one_step | delayed | discounted | discounted+grounded: Table 2 A.
    progress_signal: which loss ℓ is (see the header).  training_loss is the paper's.
    hold: H (ours 5).  lookahead: L (§5.1: 20).  decisions_per_update: B (ours 4).
    gamma, lambda_gt: γ and λ_gt of eq. 8 (ours .95, .1).
    exposure_min, exposure_max: the clip of eq. 7 (ours 0, 1).
    learning_rate, hidden: Adam, width of the MLP (ours 1e-2, 32).  The head starts at zero: Beta(1.693, 1.693).
    entropy_target, entropy_coef, entropy_start: H_target, the final c_t, and the share of the run before which c_t is
        0; from there it grows linearly (ours −.5, .1, .3).  A Beta's entropy is at most 0.
    ema: decay of the averages (ours .9); the first value starts them.
    feature_scales: one factor per feature of `FEATURES` (ours 1: as measured).
    advantage_eps: ε of eq. 9.  seed: of the controller's own generator.
    """

    total_steps: int
    mode: str = "learned"
    credit: str = "discounted+grounded"
    progress_signal: str = "training_loss"
    fixed_exposure: float = 1.0
    hold: int = 5
    lookahead: int = 20
    decisions_per_update: int = 4
    gamma: float = 0.95
    lambda_gt: float = 0.1
    exposure_min: float = 0.0
    exposure_max: float = 1.0
    learning_rate: float = 1e-2
    hidden: int = 32
    entropy_target: float = -0.5
    entropy_coef: float = 0.1
    entropy_start: float = 0.3
    ema: float = 0.9
    feature_scales: tuple[float, ...] = (1.0,) * len(FEATURES)
    advantage_eps: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_scales", tuple(float(scale) for scale in self.feature_scales))
        self.validate()

    def validate(self) -> None:
        """Raise ValueError, with value and rule, on a setting that is not usable."""
        for name, allowed in (("mode", MODES), ("credit", CREDITS), ("progress_signal", PROGRESS_SIGNALS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}")
        for name, least in (
            ("total_steps", 1),
            ("hold", 1),
            ("lookahead", 1),
            ("decisions_per_update", 2),
            ("hidden", 1),
        ):
            if getattr(self, name) < least:
                why = "; with one decision the standardised advantage is 0" if name == "decisions_per_update" else ""
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}{why}")
        for name, low, high in (
            ("fixed_exposure", 0.0, 1.0),
            ("exposure_min", 0.0, 1.0),
            ("exposure_max", 0.0, 1.0),
            ("gamma", 0.0, 1.0),
            ("entropy_start", 0.0, 1.0),
            ("ema", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [{low:g}, {high:g}]")
        if self.exposure_min > self.exposure_max:
            raise ValueError(
                f"exposure_min={self.exposure_min} exceeds exposure_max={self.exposure_max}; the range would be empty"
            )
        for name in ("lambda_gt", "entropy_coef", "learning_rate", "advantage_eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}={value} must be a number >= 0")
        if len(self.feature_scales) != len(FEATURES):
            raise ValueError(
                f"feature_scales has {len(self.feature_scales)} entries, expected one for each of {', '.join(FEATURES)}"
            )

    @property
    def window(self) -> int:
        """Updates after which a decision is credited."""
        return {"one_step": 1, "delayed": self.hold}.get(self.credit, self.lookahead)

    @property
    def window_gamma(self) -> float:
        """Discount inside that window; one_step and delayed have none."""
        return self.gamma if self.credit.startswith("discounted") else 1.0

    @property
    def grounded(self) -> bool:
        """Whether the teacher-grounded score enters the reward."""
        return self.credit == "discounted+grounded"


@dataclass(frozen=True)
class Observation:
    """What one student update showed.  None is "not measured at this step": averages keep their value.

    loss: distillation loss of the update.  mismatch: top-1 disagreement of teacher and student (or another mismatch).
    probe_nll: the student's NLL of the held-out probe.  confidence: mean student log-probability of sampled tokens.
    grounded: mean log-probability the exposed teacher gives to verified reference tokens.
    probe_loss: distillation loss of the probe at a fixed exposure, for progress_signal = fixed_exposure_probe.
    """

    loss: float | None = None
    mismatch: float | None = None
    probe_nll: float | None = None
    confidence: float | None = None
    grounded: float | None = None
    probe_loss: float | None = None


def lookahead_reward(
    losses: Sequence[float | None], grounded: Sequence[float | None], gamma: float
) -> tuple[float, float | None]:
    """(G_lp, G_gt) of eq. 8 for one decision.

    losses: ℓ_{t0} … ℓ_{t0+L} (L + 1 values), grounded: g_{t0+1} … g_{t0+L}; None where not measured.  A loss that is
    missing is skipped, so its progress falls to the next one measured; G_gt averages over what was measured and is None
    where nothing was.
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
    """(R − mean) / (std + ε) with the population's standard deviation (eq. 9); rewards (B,)."""
    return (rewards - rewards.mean()) / (rewards.std(unbiased=False) + eps)


def concentrations(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) = 1 + softplus of the policy's two outputs (eq. 7); outputs (..., 2)."""
    both = 1.0 + nn.functional.softplus(outputs)
    return both[..., 0], both[..., 1]


def controller_loss(
    outputs: Tensor, raw: Tensor, advantages: Tensor, *, entropy_coef: float, entropy_target: float
) -> Tensor:
    """Eq. 9: REINFORCE plus the cap on the entropy.  outputs (B, 2) of the policy, raw (B,) samples before the clip."""
    policy = Beta(*concentrations(outputs), validate_args=False)
    log_prob = policy.log_prob(raw.clamp(_RAW_MARGIN, 1.0 - _RAW_MARGIN))
    excess = (policy.entropy() - entropy_target).clamp(min=0.0)
    return -(advantages * log_prob).mean() + entropy_coef * excess.square().mean()


def sample_beta(a: float, b: float, generator: torch.Generator) -> float:
    """One draw of Beta(a, b), a, b ≥ 1, from the given generator (torch's own Beta takes none)."""
    x, y = _sample_gamma(a, generator), _sample_gamma(b, generator)
    return x / (x + y)


def _sample_gamma(shape: float, generator: torch.Generator) -> float:
    """Gamma(shape, 1) for shape ≥ 1 by Marsaglia and Tsang's rejection (2000)."""
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = torch.randn((), generator=generator, dtype=torch.float64).item()
        v = (1.0 + c * x) ** 3
        u = torch.rand((), generator=generator, dtype=torch.float64).item()
        if v > 0.0 and math.log(max(u, 1e-300)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v


def _policy_network(hidden: int, generator: torch.Generator) -> nn.Sequential:
    """6 → hidden → 2, tanh, the head at zero; fp64, so that its arithmetic never is what two runs differ by."""
    first: nn.Linear = nn.utils.skip_init(nn.Linear, len(FEATURES), hidden, dtype=torch.float64)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, hidden, 2, dtype=torch.float64)
    bound = 1.0 / math.sqrt(len(FEATURES))
    with torch.no_grad():
        for parameter in (first.weight, first.bias):
            parameter.copy_((torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1) * bound)
        head.weight.zero_()
        head.bias.zero_()
    return nn.Sequential(first, nn.Tanh(), head)


class ExposureController:
    """Chooses the exposure of every student update.

        controller = ExposureController(ControllerConfig(total_steps=100))
        exposure = controller.step()                      # before the first update
        for ...:
            ... one student update at `exposure` ...
            exposure = controller.step(Observation(loss=..., mismatch=..., ...))

    It lives in one process (the driver); the exposure is what the workers are told.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self._generator = torch.Generator().manual_seed(config.seed)
        self._net = _policy_network(config.hidden, self._generator)
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=config.learning_rate, foreach=False)
        # Everything else that is remembered: JSON-able, saved as it stands.
        self._memory: dict[str, Any] = {
            "step": -1,  # updates seen; −1 before the first call
            "exposure": None,
            "decided_at": None,
            "averages": {"loss": None, "mismatch": None, "probe_nll": None},
            "confidence": None,
            "progress_loss": None,
            "series_start": 0,  # step of the first entry of the two series
            "losses": [],
            "grounded": [],
            "open": [],
            "completed": [],
            "decisions": [],
            "updates": 0,
            "dropped_values": 0,
            "policy": None,
            "last_update": None,
        }

    @property
    def started(self) -> bool:
        """Whether `step()` was called, so that there is an exposure in force."""
        return self._memory["exposure"] is not None

    @property
    def exposure(self) -> float:
        """The exposure in force.  Raises RuntimeError before the first `step()`."""
        if self._memory["exposure"] is None:
            raise RuntimeError("no exposure has been chosen yet; call step() once before the first update")
        return self._memory["exposure"]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Log of completed decisions, oldest first: step, exposure, a, b, reward and its two terms."""
        return [dict(entry) for entry in self._memory["decisions"]]

    def step(self, observation: Observation | None = None) -> float:
        """Take in what the last update showed and return the exposure for the next one.

        The first call precedes the first update; its observation may be None, or hold losses measured before training
        (then the first decision is credited for the first update too).  Every later call needs one.
        Raises ValueError where an observation, or the grounded score that the credit needs, is missing.
        """
        memory = self._memory
        if observation is None and memory["step"] >= 0:
            raise ValueError("observation=None after the first call; pass what the update showed")
        memory["step"] += 1
        self._record(observation or Observation())
        if self.config.mode == "learned":
            self._complete_windows()
            if len(memory["completed"]) >= self.config.decisions_per_update:
                self._update_policy()
        if memory["decided_at"] is None or memory["step"] - memory["decided_at"] >= self.config.hold:
            self._decide()
        return memory["exposure"]

    def entropy_coefficient(self) -> float:
        """c_t: 0 up to `entropy_start` of the run, then linear up to `entropy_coef` at its end."""
        start = self.config.entropy_start
        progress = self._progress()
        if progress <= start:
            return 0.0
        return self.config.entropy_coef * (progress - start) / (1.0 - start)

    def metrics(self) -> dict[str, float]:
        """What to log after each step; keys appear once they are known."""
        memory = self._memory
        out = {"exposure/alpha": self.exposure, "exposure/dropped_values": float(memory["dropped_values"])}
        if self.config.mode != "learned":
            return out
        out["exposure/entropy_coef"] = self.entropy_coefficient()
        out["exposure/open_windows"] = float(len(memory["open"]))
        out["exposure/updates"] = float(memory["updates"])
        for name, value in (memory["policy"] or {}).items():
            out[f"exposure/{name}"] = value
        for name, value in (memory["last_update"] or {}).items():
            out[f"exposure/{name}"] = value
        if memory["decisions"]:
            last = memory["decisions"][-1]
            for name in ("reward", "reward_progress", "reward_grounded"):
                if last[name] is not None:
                    out[f"exposure/{name}"] = last[name]
        return out

    # --- what happens in a step ---------------------------------------------------------------------------------------

    def _progress(self) -> float:
        return min(1.0, max(0, self._memory["step"]) / self.config.total_steps)

    def _record(self, observation: Observation) -> None:
        memory, config = self._memory, self.config
        values = {}
        for field in fields(Observation):
            value = getattr(observation, field.name)
            if value is not None:
                value = float(value)
                if not math.isfinite(value):  # one bad step must not poison averages that live for the whole run
                    memory["dropped_values"] += 1
                    value = None
            values[field.name] = value
        for name, average in memory["averages"].items():
            if values[name] is not None:
                memory["averages"][name] = (
                    values[name] if average is None else config.ema * average + (1.0 - config.ema) * values[name]
                )
        if values["confidence"] is not None:
            memory["confidence"] = values["confidence"]
        signal = values["loss" if config.progress_signal == "training_loss" else "probe_loss"]
        if signal is not None:
            memory["progress_loss"] = signal
        # A signal that is measured every few steps stays as it is in between: no progress is seen until it moves.
        memory["losses"].append(memory["progress_loss"])
        memory["grounded"].append(values["grounded"])

    def _complete_windows(self) -> None:
        memory, config = self._memory, self.config
        while memory["open"] and memory["step"] - memory["open"][0]["step"] >= config.window:
            decision = memory["open"].pop(0)
            first = decision["step"] - memory["series_start"]
            last = first + config.window
            progress, grounded = lookahead_reward(
                memory["losses"][first : last + 1], memory["grounded"][first + 1 : last + 1], config.window_gamma
            )
            reward = progress
            if config.grounded:
                if grounded is None:
                    raise ValueError(
                        f"credit={config.credit!r}: no grounded score was observed in the {config.window} updates "
                        f"after step {decision['step']}; pass Observation(grounded=...) at least once per window, "
                        "or use credit='discounted'"
                    )
                reward += config.lambda_gt * grounded
            memory["completed"].append({"features": decision["features"], "raw": decision["raw"], "reward": reward})
            memory["decisions"].append(
                {
                    **{key: decision[key] for key in ("step", "exposure", "a", "b")},
                    "reward": reward,
                    "reward_progress": progress,
                    "reward_grounded": grounded,
                }
            )

    def _update_policy(self) -> None:
        memory, config = self._memory, self.config
        batch = memory["completed"]
        rewards = torch.tensor([item["reward"] for item in batch], dtype=torch.float64)
        features = torch.tensor([item["features"] for item in batch], dtype=torch.float64)
        raw = torch.tensor([item["raw"] for item in batch], dtype=torch.float64)
        with torch.enable_grad():
            loss = controller_loss(
                self._net(features),
                raw,
                standardise(rewards, config.advantage_eps),
                entropy_coef=self.entropy_coefficient(),
                entropy_target=config.entropy_target,
            )
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self._optimizer.step()
        memory["completed"] = []
        memory["updates"] += 1
        memory["last_update"] = {
            "controller_loss": loss.item(),
            "reward_mean": rewards.mean().item(),
            "reward_std": rewards.std(unbiased=False).item(),
        }

    def _decide(self) -> None:
        memory, config = self._memory, self.config
        if config.mode == "fixed":
            memory["exposure"] = float(config.fixed_exposure)
        elif config.mode == "random":
            u = torch.rand((), generator=self._generator, dtype=torch.float64).item()
            memory["exposure"] = config.exposure_min + u * (config.exposure_max - config.exposure_min)
        else:
            features = self._features()
            with torch.no_grad():
                both = concentrations(self._net(torch.tensor(features, dtype=torch.float64)))
                entropy = Beta(*both, validate_args=False).entropy().item()
            a, b = (value.item() for value in both)
            raw = sample_beta(a, b, self._generator)
            exposure = min(max(raw, config.exposure_min), config.exposure_max)
            memory["policy"] = {"a": a, "b": b, "mean": a / (a + b), "entropy": entropy}
            memory["open"].append(
                {"step": memory["step"], "features": features, "raw": raw, "exposure": exposure, "a": a, "b": b}
            )
            memory["exposure"] = exposure
        memory["decided_at"] = memory["step"]
        # Only what an open window still needs is kept of the series.
        oldest = memory["open"][0]["step"] if memory["open"] else memory["step"]
        drop = oldest - memory["series_start"]
        memory["losses"], memory["grounded"] = memory["losses"][drop:], memory["grounded"][drop:]
        memory["series_start"] = oldest

    def _features(self) -> list[float]:
        memory, config = self._memory, self.config
        averages = memory["averages"]
        previous = memory["exposure"]
        if previous is None:  # before the first decision: the mean of the initial policy
            previous = min(max(0.5, config.exposure_min), config.exposure_max)
        measured = [averages["loss"], averages["mismatch"], averages["probe_nll"], memory["confidence"]]
        values = [self._progress(), previous, *(0.0 if value is None else value for value in measured)]
        return [scale * value for scale, value in zip(config.feature_scales, values, strict=True)]

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: Tensor}, "values": JSON-able}: all of it, as a copy."""
        tensors = {f"policy.{name}": tensor.detach().clone() for name, tensor in self._net.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                tensors[f"adam.{index}.{name}"] = torch.as_tensor(value).detach().clone()
        tensors["generator"] = self._generator.get_state()
        values = {"version": 1, "config": asdict(self.config), "memory": self._memory}
        return {"tensors": tensors, "values": json.loads(json.dumps(values))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Settings that give the saved windows their meaning must be the same (ValueError names the one that is not);
        others, such as total_steps or the learning rate, are those of this controller.
        """
        values, tensors = state["values"], state["tensors"]
        if values.get("version") != 1:
            raise ValueError(f"controller state has version {values.get('version')!r}, this code reads version 1")
        for name in _STRUCTURAL:
            saved, own = values["config"][name], getattr(self.config, name)
            if saved != own:
                raise ValueError(
                    f"{name}={own!r}, but the saved controller ran with {saved!r}; resume with the saved value, or "
                    "start without its checkpoint"
                )
        prefix = "policy."
        self._net.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        optimizer = self._optimizer.state_dict()
        optimizer["state"] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                optimizer["state"].setdefault(int(index), {})[name] = value.clone()
        self._optimizer.load_state_dict(optimizer)
        self._generator.set_state(tensors["generator"])
        self._memory = json.loads(json.dumps(values["memory"]))

    def save(self, directory: str | Path) -> None:
        """Write exposure_controller.safetensors and .json into a directory, each replaced in one step."""
        from safetensors.torch import save_file

        state = self.state_dict()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # Both carry the step, so that files of two different saves are told apart on loading.
        stamp = str(state["values"]["memory"]["step"])
        target = directory / f"{_FILE_STEM}.safetensors"
        save_file(state["tensors"], f"{target}.tmp", metadata={"step": stamp})
        os.replace(f"{target}.tmp", target)
        target = directory / f"{_FILE_STEM}.json"
        Path(f"{target}.tmp").write_text(json.dumps(state["values"], indent=1) + "\n", encoding="utf-8")
        os.replace(f"{target}.tmp", target)

    def load(self, directory: str | Path) -> None:
        """Continue from what `save` wrote.  Raises FileNotFoundError, or ValueError as `load_state_dict` does."""
        from safetensors import safe_open

        directory = Path(directory)
        values = json.loads((directory / f"{_FILE_STEM}.json").read_text(encoding="utf-8"))
        path = directory / f"{_FILE_STEM}.safetensors"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing beside {_FILE_STEM}.json")
        with safe_open(path, framework="pt") as file:
            stamp = (file.metadata() or {}).get("step")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if stamp != str(values["memory"]["step"]):
            raise ValueError(
                f"{path} is of step {stamp}, {_FILE_STEM}.json of step {values['memory']['step']}; the save was "
                "interrupted, use an earlier checkpoint"
            )
        self.load_state_dict({"tensors": tensors, "values": values})
