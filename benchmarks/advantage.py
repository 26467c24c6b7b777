"""Time and memory of the advantage estimators on the driver: `python -m benchmarks.advantage`.

One batch of ragged rollouts, every implementation on the same tensors in the same process, best of a few rounds, and
the ratio to a plain loop over rows that calls numpy's own quantile, median and mean. Results are compared before they
are timed. Ratios are of processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

import advantage
from advantage.dasd import direction_coefficient
from advantage.estimators import CreditInputs, params_from_config, run_estimator
from advantage.pw_opsd import position_weight
from advantage.segments import mean_abs_deviation, quantile, reduce_rows, row_median


def ragged_batch(rows: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    """A batch like a reasoning model's: lengths from 64 to `width`, most entropies near zero, heavy-tailed gaps."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(min(64, width), width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths.unsqueeze(-1)
    entropy = torch.rand(rows, width, generator=generator).pow_(6).mul_(3.0)
    gap = torch.randn(rows, width, generator=generator).mul_(entropy)
    return {"entropy": entropy, "log_prob_gap": gap, "response_mask": mask}


def loop_statistics(entropy: np.ndarray, gap: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """The three statistics of DASD by a loop over rows: quantile of H, deviation of H, median of |delta|."""
    quantile, spread, scale = (np.zeros(len(valid), dtype=np.float32) for _ in range(3))
    for row in range(len(valid)):
        h, d = entropy[row][valid[row]], gap[row][valid[row]]
        quantile[row] = np.quantile(h, 0.2)
        spread[row] = np.abs(h - h.mean(dtype=np.float64)).mean()
        scale[row] = np.median(np.abs(d))
    return quantile, spread, scale


def loop_direction(entropy: np.ndarray, gap: np.ndarray, valid: np.ndarray, eps: float) -> np.ndarray:
    """omega * delta-bar by a loop over rows."""
    field = np.zeros_like(gap)
    for row in range(len(valid)):
        here = valid[row]
        h, d = entropy[row][here], gap[row][here]
        normalized = d / (np.median(np.abs(d)) + eps)
        router = np.tanh((np.quantile(h, 0.2) - h) / (np.abs(h - h.mean()).mean() + eps))
        field[row][here] = router / (1.0 + np.exp(1.0 - np.abs(normalized))) * normalized
    return field


def best_seconds(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least wall seconds and least processor seconds of a few rounds."""
    wall, processor = [], []
    for _ in range(rounds):
        begin = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    return min(wall), min(processor)


def peak_gib() -> float:
    """Peak resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192, help="longest response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    batch = ragged_batch(options.rollouts, options.tokens, options.seed)
    entropy, gap, mask = batch["entropy"], batch["log_prob_gap"], batch["response_mask"]
    host_entropy, host_gap, valid = entropy.numpy(), gap.numpy(), mask.numpy()
    print(
        f"{options.rollouts} rollouts of up to {options.tokens} tokens, {int(mask.sum()) / 1e6:.1f}M valid tokens, "
        f"{torch.get_num_threads()} threads; one (B, T) fp32 tensor is {entropy.numel() * 4 / 2**30:.2f} GiB, "
        f"resident with inputs {peak_gib():.2f} GiB"
    )

    generator = torch.Generator().manual_seed(options.seed)
    anchor = torch.randn(options.rollouts, 1, generator=generator) * mask
    inputs = CreditInputs(
        group_advantage=anchor,
        response_mask=mask,
        scores=anchor[:, 0],
        equal_reward_rows=torch.zeros(options.rollouts, dtype=torch.bool),
        entropy=entropy,
        log_prob_gap=gap,
        step=1,
        total_steps=100,
    )
    before = peak_gib()
    run_estimator("dasd", inputs, params_from_config("dasd", None))
    print(f"the dasd estimator's own peak: {peak_gib() - before:.2f} GiB above its inputs")

    def statistics() -> tuple[torch.Tensor, ...]:
        thresholds = reduce_rows(lambda tokens: quantile(tokens, 0.2), entropy, mask)
        return thresholds, reduce_rows(mean_abs_deviation, entropy, mask), row_median(gap.abs(), mask)

    for ours, theirs in zip(statistics(), loop_statistics(host_entropy, host_gap, valid), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-7)
    omega, normalized = direction_coefficient(entropy, gap, mask)
    np.testing.assert_allclose(
        (omega * normalized).numpy(), loop_direction(host_entropy, host_gap, valid, 1e-6), rtol=1e-3, atol=1e-4
    )
    del omega, normalized

    loop_stats = best_seconds(lambda: loop_statistics(host_entropy, host_gap, valid), options.rounds)
    loop_field = best_seconds(lambda: loop_direction(host_entropy, host_gap, valid, 1e-6), options.rounds)
    cases: list[tuple[str, Callable[[], object], tuple[float, float] | None]] = [
        ("DASD row statistics", statistics, loop_stats),
        ("DASD direction_coefficient", lambda: direction_coefficient(entropy, gap, mask), loop_field),
        ("PW-OPSD position_weight", lambda: position_weight(mask), None),
    ]
    for name in sorted(advantage.estimators.ESTIMATORS):
        params = params_from_config(name, None)
        cases.append((f"estimator {name}, with metrics", lambda n=name, p=params: run_estimator(n, inputs, p), None))
    print(f"{'':34s}{'wall s':>8s}{'cpu s':>8s}{'loop wall':>11s}{'loop cpu':>10s}{'ratio':>8s}")
    for label, call, loop in cases:
        wall, processor = best_seconds(call, options.rounds)
        against = f"{loop[0]:11.2f}{loop[1]:10.2f}{loop[1] / processor:7.1f}x" if loop else ""
        print(f"{label:34s}{wall:8.2f}{processor:8.2f}{against}")


if __name__ == "__main__":
    main()
