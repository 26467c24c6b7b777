"""ATESD's exposure controller: how much of the reference the teacher is shown next (arXiv 2605.11458, §4.2-4.3).

One exposure α for all samples, held for H student updates, drawn from a Beta policy over six statistics of training:

    (a, b) = 1 + softplus(f(s)),   α ~ Beta(a, b), clipped to [exposure_min, exposure_max]                       (eq. 7)

Each decision is credited by what the student does over the next L updates, and the policy is trained by REINFORCE on
batches of completed decisions:

    R(t0) = Σ_{i=1..L} γ^{i−1} max(0, ℓ_{t0+i−1} − ℓ_{t0+i}) + λ_gt · Σ γ^{i−1} g_{t0+i} / Σ γ^{i−1}         (eq. 8)
    loss  = −mean_j A_j log π(α_j | s_j) + c_t · max(0, H[π] − H_target)²,   A = (R − mean R) / (std R + ε)     (eq. 9)

ℓ_t is the distillation loss after update t, g_t the mean log-probability that the exposed teacher gives to verified
reference tokens.  A training loss is measured in an update's own forward pass, before the weights move: that of update
t + 1 is ℓ_t, on update t + 1's batch and at its exposure, so a decision credited by it waits one update more.
Mismatch is state and diagnostic, never reward.

The paper gives the equations, L = 20 and "a 2-layer MLP on six statistics"; every other number is a default of ours and
a field of `ControllerConfig`.  Also ours: population standard deviation; log π at the *raw* sample (before the clip to
the exposure range) clamped to [1e-4, 1 − 1e-4]; the entropy penalty averaged over the batch's states; statistics not
yet measured enter the state as 0; credit "delayed" is the undiscounted progress over the hold window (its Table 2
only calls it a short delayed signal); where the first ℓ of a window was not measured, progress counts from the first
that was.

With ℓ the training loss, lowering α lowers ℓ mechanically and is credited as progress.  progress_signal =
"fixed_exposure_probe" credits the decisions by a loss measured at one fixed exposure on held-out items instead.
credit = "counterfactual" compares with an update that was not kept: R = ℓ'_{t0+1} − ℓ_{t0+1}, both the probe's, ℓ'
after the same update at `counterfactual_exposure`.  What any update brings cancels; what later ones make of it is not
seen.

The controller draws from a generator of its own and saves everything it holds (policy, optimiser, generator, averages,
held action, open windows, log), in safetensors and JSON: a run that is stopped and resumed makes the same decisions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import Beta

from recipes.common.teacher.credit import (
    concentrations,
    controller_loss,
    lookahead_reward,
    policy_network,
    standardise,
)
from recipes.common.teacher.decisions import AVERAGED, FEATURES, ControllerConfig, Decision, Memory, Observation

_FILE_STEM = "exposure_controller"
STATE_VERSION = 3
# A saved state means something else under another value of these.
_STRUCTURAL = ("mode", "credit", "progress_signal", "hold", "lookahead", "decisions_per_update", "hidden")


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
        self._generator = np.random.default_rng(config.seed)
        uniform = torch.from_numpy(self._generator.random(config.hidden * (len(FEATURES) + 1)))
        self._net = policy_network(len(FEATURES), config.hidden, uniform)
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=config.learning_rate, foreach=False)
        self.memory = Memory()

    @property
    def started(self) -> bool:
        """Whether `step()` was called, so that there is an exposure in force."""
        return self.memory.exposure is not None

    @property
    def counterfactual_due(self) -> bool:
        """Whether the update to come is to be tried at `counterfactual_exposure` first: a decision's first one."""
        memory, config = self.memory, self.config
        return config.mode == "learned" and config.counterfactual and memory.decided_at == memory.step

    @property
    def exposure(self) -> float:
        """The exposure in force.

        Raises:
            RuntimeError: if `step` was never called.
        """
        if self.memory.exposure is None:
            raise RuntimeError("no exposure has been chosen yet; call step() once before the first update")
        return self.memory.exposure

    def step(self, observation: Observation | None = None) -> float:
        """Take in what the last update showed and return the exposure for the next one.

        The first call precedes the first update; its observation may be None, or hold what was measured before training
        (a probe's loss: the first decision is then credited for the first update too).  Every later call needs one.

        Raises:
            ValueError: if an observation, or the grounded score that the credit needs, is missing.
        """
        memory = self.memory
        if observation is None and memory.step >= 0:
            raise ValueError("observation=None after the first call; pass what the update showed")
        memory.step += 1
        self._record(observation or Observation())
        if self.config.mode == "learned":
            self._complete_windows()
            if len(memory.completed) >= self.config.decisions_per_update:
                self._update_policy()
        if memory.decided_at is None or memory.step - memory.decided_at >= self.config.hold:
            self._decide()
        return self.exposure

    def entropy_coefficient(self) -> float:
        """c_t after the updates that were seen."""
        return self.config.entropy_coefficient_at(self.memory.step)

    def metrics(self) -> dict[str, float]:
        """What to log after each step; keys appear once they are known."""
        memory = self.memory
        out = {"alpha": self.exposure, "dropped_values": float(memory.dropped_values)}
        if self.config.mode == "learned":
            out |= {
                "entropy_coef": self.entropy_coefficient(),
                "open_windows": float(len(memory.open)),
                "updates": float(memory.updates),
                "dropped_decisions": float(memory.dropped_decisions),
                **memory.policy,
                **memory.last_update,
            }
            if memory.decided:
                last = asdict(memory.decided[-1])
                terms = ("reward", "reward_progress", "reward_grounded")
                out |= {name: last[name] for name in terms if last[name] is not None}
        return {f"exposure/{name}": value for name, value in out.items()}

    # --- what happens in a step ---------------------------------------------------------------------------------------

    def _progress(self) -> float:
        return min(1.0, max(0, self.memory.step) / self.config.total_steps)

    def _record(self, observation: Observation) -> None:
        memory, config = self.memory, self.config
        values = {name: self._number(value) for name, value in asdict(observation).items()}
        for name in AVERAGED:
            value, average = values[name], getattr(memory, name)
            if value is not None:
                mixed = value if average is None else config.ema * average + (1.0 - config.ema) * value
                setattr(memory, name, mixed)
        if values["confidence"] is not None:
            memory.confidence = values["confidence"]
        pair = values["counterfactual_loss"], values["probe_loss"]
        memory.gain = None if pair[0] is None or pair[1] is None else pair[0] - pair[1]
        signal = values["probe_loss" if config.measures_probe_loss else "loss"]
        if signal is not None:
            memory.progress_loss = signal
        # A signal that is measured every few steps stays as it is in between: no progress is seen until it moves.
        memory.losses.append(memory.progress_loss)
        memory.grounded.append(values["grounded"])

    def _number(self, value: float | None) -> float | None:
        """A finite number, or None: one bad step must not poison averages that live for the whole run."""
        if value is None or math.isfinite(value):
            return value if value is None else float(value)
        self.memory.dropped_values += 1
        return None

    def _complete_windows(self) -> None:
        memory, config = self.memory, self.config
        while memory.open and memory.step - memory.open[0].step >= config.credited_after:
            decision = memory.open.pop(0)
            if config.counterfactual:
                if memory.gain is None:
                    memory.dropped_decisions += 1
                    continue
                self._credit(decision, memory.gain, memory.gain, None)
                continue
            first = decision.step - memory.series_start
            last = first + config.window
            # ℓ_{t0} … ℓ_{t0+L} stand where they were told; g_{t0+1} … g_{t0+L} are measured after their updates.
            losses = memory.losses[first + config.delay : last + config.delay + 1]
            grounds = memory.grounded[first + 1 : last + 1]
            progress, grounded = lookahead_reward(losses, grounds, config.window_gamma)
            reward = progress
            if config.grounded:
                if grounded is None:
                    raise ValueError(
                        f"credit={config.credit!r}: no grounded score was observed in the {config.window} updates "
                        f"after step {decision.step}; pass Observation(grounded=...) at least once per window, "
                        "or use credit='discounted'"
                    )
                reward += config.lambda_gt * grounded
            self._credit(decision, reward, progress, grounded)

    def _credit(self, decision: Decision, reward: float, progress: float, grounded: float | None) -> None:
        decision.reward, decision.reward_progress, decision.reward_grounded = reward, progress, grounded
        self.memory.completed.append(decision)
        self.memory.decided.append(decision)

    def _update_policy(self) -> None:
        memory, config = self.memory, self.config
        batch = memory.completed
        rewards = torch.tensor([decision.reward for decision in batch], dtype=torch.float64)
        features = torch.tensor([decision.features for decision in batch], dtype=torch.float64)
        raw = torch.tensor([decision.raw for decision in batch], dtype=torch.float64)
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
        memory.completed = []
        memory.updates += 1
        memory.last_update = {
            "controller_loss": loss.item(),
            "reward_mean": rewards.mean().item(),
            "reward_std": rewards.std(unbiased=False).item(),
        }

    def _decide(self) -> None:
        memory, config = self.memory, self.config
        if config.mode == "fixed":
            memory.exposure = float(config.fixed_exposure)
        elif config.mode == "random":
            memory.exposure = float(self._generator.uniform(config.exposure_min, config.exposure_max))
        else:
            features = self._features()
            with torch.no_grad():
                both = concentrations(self._net(torch.tensor(features, dtype=torch.float64)))
                entropy = Beta(*both, validate_args=False).entropy().item()
            a, b = (value.item() for value in both)
            raw = float(self._generator.beta(a, b))
            exposure = min(max(raw, config.exposure_min), config.exposure_max)
            memory.policy = {"a": a, "b": b, "mean": a / (a + b), "entropy": entropy}
            memory.open.append(Decision(memory.step, features, raw, exposure, a, b))
            memory.exposure = exposure
        memory.decided_at = memory.step
        # Only what an open window still needs is kept of the series.
        oldest = memory.open[0].step if memory.open else memory.step
        drop = oldest - memory.series_start
        memory.losses, memory.grounded = memory.losses[drop:], memory.grounded[drop:]
        memory.series_start = oldest

    def _features(self) -> list[float]:
        memory, config = self.memory, self.config
        previous = memory.exposure
        if previous is None:  # before the first decision: the mean of the initial policy
            previous = min(max(0.5, config.exposure_min), config.exposure_max)
        measured = [memory.loss, memory.mismatch, memory.probe_nll, memory.confidence]
        values = [self._progress(), previous, *(0.0 if value is None else value for value in measured)]
        return [scale * value for scale, value in zip(config.feature_scales, values, strict=True)]

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: Tensor}, "values": JSON-able}: all of it, as a copy."""
        tensors = {f"policy.{name}": tensor.detach().clone() for name, tensor in self._net.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                tensors[f"adam.{index}.{name}"] = torch.as_tensor(value).detach().clone()
        values = {
            "version": STATE_VERSION,
            "config": asdict(self.config),
            "memory": asdict(self.memory),
            "generator": self._generator.bit_generator.state,
        }
        return {"tensors": tensors, "values": json.loads(json.dumps(values))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Settings that give the saved windows their meaning must be the same; others, such as total_steps or the learning
        rate, are those of this controller.

        Raises:
            ValueError: if another release saved it, or one of those settings differs; the message names the setting.
        """
        values, tensors = state["values"], state["tensors"]
        if values.get("version") != STATE_VERSION:
            raise ValueError(
                f"controller state has version {values.get('version')!r}, this code reads version {STATE_VERSION}: "
                "it was saved by another release; start in another hydra.run.dir"
            )
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
        self._generator.bit_generator.state = values["generator"]
        self.memory = Memory.from_json(json.loads(json.dumps(values["memory"])))

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
        """Continue from what `save` wrote.

        Raises:
            FileNotFoundError: if one of its files is missing.
            ValueError: if the files are of different steps, or `load_state_dict` refuses what they hold.
        """
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
