"""The diagnostics' figures, drawn by matplotlib without a display."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from recipes.diagnose.runner import Findings, Records
from recipes.diagnose.statistics import Interval

# Okabe and Ito's colours: told apart with any colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"


def _axes(figure: Figure, count: int) -> list[Axes]:
    made = figure.subplots(1, count, squeeze=False)[0]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return list(made)


def _bars(axes: Axes, x: Any, intervals: list[Interval], **style: Any) -> None:
    """Points with their intervals; what is undefined is left out."""
    values = np.array([[i.value, i.low, i.high] for i in intervals], dtype=float)
    errors = np.abs(values[:, 1:].T - values[:, 0])
    axes.errorbar(x, values[:, 0], yerr=errors, capsize=2.5, elinewidth=1.1, **style)


def dasd_probes(findings: Findings, records: Records, cfg: DictConfig) -> Figure:
    """Pressure against entropy, shift by entropy, effects of the interventions."""
    results = findings.results
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = _axes(figure, 3)
    entropies = np.concatenate([r["entropy"] for r in records])
    gaps = np.concatenate([r["gap"] for r in records])
    bins = results["by_entropy"]["bins"]
    centres = [max(row["entropy"], 1e-4) for row in bins]

    floor = 1e-4  # of a logarithmic axis of entropy
    counted = left.hexbin(
        np.maximum(entropies, floor), gaps, gridsize=42, xscale="log", bins="log", cmap="YlGnBu", mincnt=1, linewidths=0
    )
    figure.colorbar(counted, ax=left, label="tokens", shrink=0.8)
    _bars(left, centres, [row["gap"] for row in bins], fmt="o-", color=RED, markersize=4, label="mean in bin, 95 %")
    left.axhline(0, color="black", linewidth=0.6)
    rho = results["spearman"]["gap"]
    left.set_title(f"Pressure: Spearman ρ = {rho.value:.2f} [{rho.low:.2f}, {rho.high:.2f}]", fontsize=10)
    left.set_xlabel("student's entropy $H_t$ (nats)")
    left.set_ylabel("$A_t$ = log $p_T(o_t)$ − log $p_S(o_t)$")
    left.legend(fontsize=8, frameon=False)

    styles = {
        "conformity": (BLUE, "o-", "+1, all tokens"),
        "novelty": (RED, "s--", "−1, all tokens"),
        "conformity_own": (BLUE, "^:", "+1, tokens with A > 0"),
        "novelty_own": (RED, "v:", "−1, tokens with A < 0"),
    }
    for step, (colour, form, label) in styles.items():
        if step in bins[0]:
            _bars(
                middle,
                centres,
                [row[step] for row in bins],
                fmt=form,
                color=colour,
                markersize=4,
                label=label,
                alpha=0.85,
            )
    middle.set_title("Total variation after one step", fontsize=10)
    middle.set_xlabel("student's entropy $H_t$ (nats), bin mean")
    middle.set_ylabel("TV(before, after)")
    middle.set_xscale("log")
    middle.set_yscale("log")
    if middle.get_legend_handles_labels()[0]:
        middle.legend(fontsize=8, frameon=False)

    _interventions(right, results.get("interventions"))
    return figure


def _interventions(axes: Axes, found: dict[str, Any] | None) -> None:
    axes.set_title("One token drawn anew: change against unmodified", fontsize=10)
    if not found:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    metrics = [m for m in ("step_acc", "e_per_1k") if m in found["unmodified"]]
    names = {"step_acc": "StepAcc", "e_per_1k": "E(y)"}
    places = [(bucket, metric) for bucket in ("low", "high", "random") for metric in metrics]
    for offset, (kind, colour) in enumerate({"conformity": BLUE, "novelty": RED, "resampled": GREY}.items()):
        keys = [f"{metric}/{bucket}/{kind}" for bucket, metric in places]
        known = [i for i, key in enumerate(keys) if key in found["effects"]]
        _bars(
            axes, [i + 0.22 * (offset - 1) for i in known],
            [found["effects"][keys[i]]["versus_unmodified_percent"] for i in known],
            fmt="o", color=colour, markersize=5, label=kind if kind != "resampled" else "student's own draw",
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(places)), [f"{names[m]}\n{b} H" for b, m in places], fontsize=8)
    axes.set_ylabel("change (%), 95 %")
    axes.legend(fontsize=8, frameon=False)
