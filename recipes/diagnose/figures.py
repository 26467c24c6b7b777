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
    """Draw pressure against entropy, shift by entropy, and effects of the interventions.

    Args:
        findings: what the diagnostic found.
        records: what the findings were made from.
        cfg: the diagnostic's configuration.
    """
    results = findings.results
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = _axes(figure, 3)
    entropies = np.concatenate([r["entropy"] for r in records])
    gaps = np.concatenate([r["gap"] for r in records])
    bins = results["by_entropy"]["bins"]
    floor = 1e-4  # of a logarithmic axis of entropy
    centres = [max(row["entropy"], floor) for row in bins]

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
                [row["entropy"] for row in bins],
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
    # A change in per cent of nothing is no number: where responses have no marker, or no step that can be judged, the
    # accuracy stands in.
    names = {"step_acc": "StepAcc", "e_per_1k": "E(y)", "accuracy": "accuracy"}
    metrics = [m for m in names if found["unmodified"].get(m) is not None and found["unmodified"][m].value][:2]
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


def branch_viability(findings: Findings, records: Records, cfg: DictConfig) -> Figure:
    """Draw the failure of forced alternatives along the spine, where the labels lie, and how well scores tell them.

    Args:
        findings: what the diagnostic found.
        records: what the findings were made from.
        cfg: the diagnostic's configuration.
    """
    from recipes.diagnose.branches import DIVERSITY, REAL_UNCERTAIN
    from recipes.diagnose.viability import SCORES, labelled

    results = findings.results
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    left, middle, right = _axes(figure, 3)
    bins = results.get("failure_by_position", [])
    if bins:
        _bars(left, [(b["from"] + b["to"]) / 2 for b in bins], [b["failure"] for b in bins], fmt="o-", color=BLUE)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="position on the spine, u", ylabel="1 − viability, 95 %")
    left.set_title("Failure of forced alternatives", fontsize=10)

    candidates = labelled(records, cfg)
    groups = {name: [c["u"] for c in candidates if c["label"] == name] for name in (REAL_UNCERTAIN, DIVERSITY)}
    edges = np.linspace(0, 1, 11)
    middle.hist(
        list(groups.values()),
        bins=edges.tolist(),
        color=[RED, GREEN],
        label=[f"{k} ({len(v)})" for k, v in groups.items()],
    )
    middle.set(xlim=(0, 1), xlabel="position on the spine, u", ylabel="candidates")
    middle.set_title("Where the labels lie", fontsize=10)
    middle.legend(fontsize=8, frameon=False)

    right.set_title("Real-uncertain against diversity, centred within problem", fontsize=10)
    if "residual" in results:
        areas = [values["auroc"] for values in results["residual"].values()]
        places = np.arange(len(areas))[::-1]
        values = np.array([[a.value, a.low, a.high] for a in areas])
        right.errorbar(
            values[:, 0], places, xerr=np.abs(values[:, 1:].T - values[:, 0]), fmt="o", color=BLUE, capsize=2.5
        )
        right.set_yticks(places, list(SCORES.values()), fontsize=8)
        right.axvline(0.5, color="black", linewidth=0.6)
        right.grid(axis="x", alpha=0.25, linewidth=0.6)
        right.set(xlim=(0, 1), xlabel="AUROC, 95 %")
    else:
        right.text(0.5, 0.5, "only one label occurs", ha="center", transform=right.transAxes)
    return figure


def exposure_sweep(findings: Findings, records: Records, cfg: DictConfig) -> Figure:
    """Draw mismatch and disagreement by exposure, mismatch by difficulty, separation, and one replayed rollout.

    Args:
        findings: what the diagnostic found.
        records: what the findings were made from.
        cfg: the diagnostic's configuration.
    """
    results, exposures = findings.results, list(cfg.exposures)
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    first, second, third, fourth = _axes(figure, 4)
    _bars(first, exposures, results["all"]["kl"], fmt="o-", color=BLUE, markersize=4)
    first.set(xlabel="exposure α", ylabel="M(α), nats a token", ylim=(0, None))
    first.yaxis.label.set_color(BLUE)
    twin = first.twinx()
    twin.spines["top"].set_visible(False)
    _bars(twin, exposures, results["all"]["disagreement"], fmt="s--", color=ORANGE, markersize=4)
    twin.set(ylabel="top-1 disagreement", ylim=(0, None))
    twin.yaxis.label.set_color(ORANGE)
    first.set_title("Mismatch, 95 %", fontsize=10)

    colours = {"easy": GREEN, "medium": ORANGE, "hard": RED}
    for group, row in results["difficulty"].items():
        _bars(
            second,
            exposures,
            row["kl"],
            fmt="o-",
            color=colours[group],
            markersize=4,
            label=f"{group} ({row['problems']})",
        )
    second.set(xlabel="exposure α", ylabel="M(α), nats a token", ylim=(0, None))
    second.set_title("Mismatch by difficulty", fontsize=10)
    second.legend(fontsize=8, frameon=False)

    _bars(third, exposures, results["separation"], fmt="o-", color=BLUE, markersize=4)
    third.axhline(0.5, color="black", linewidth=0.6)
    third.set(xlabel="exposure α", ylabel="AUROC of mean δ, right against wrong")
    third.set_title("Separation within problem", fontsize=10)

    names = [f"{alpha:g}" for alpha in cfg.replay]
    shown = max((r for r in records if r["correct"]), key=lambda r: max(r["replay"][names[0]]), default=records[0])
    for name, colour, form in zip(names, (RED, BLUE), ("-", "--"), strict=True):
        fourth.plot(range(1, shown["tokens"] + 1), shown["replay"][name], form, color=colour, label=f"α = {name}")
    fourth.set(xlabel="token of the rollout", ylabel="KL(teacher ‖ student)")
    fourth.set_title(f"Replay: right rollout with the largest spike (problem {shown['problem']})", fontsize=9)
    fourth.legend(fontsize=8, frameon=False)
    return figure


def forks_and_revisions(findings: Findings, records: Records, cfg: DictConfig) -> Figure:
    """Draw what forced tokens change, and what becomes of revisions that are preserved, suppressed or forced.

    Args:
        findings: what the diagnostic found.
        records: what the findings were made from.
        cfg: the diagnostic's configuration.
    """
    places, gains = findings.results["places"], findings.results["models"]
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    first, second, third, fourth = _axes(figure, 4)
    _forced(first, places, "accuracy_difference", "change of the accuracy, 95 %")
    first.set_title("One token forced: right answers", fontsize=10)
    _forced(second, places, "markers_on_difference", "change of the markers on from it, 95 %")
    second.set_title("One token forced: markers of doubt", fontsize=10)

    third.set_title("Revisions at equal prefixes", fontsize=10)
    if "revision" in places:
        for at, (kind, colour) in enumerate({"preserved": BLUE, "suppressed": RED, "forced": ORANGE}.items()):
            _bars(third, [at], [places["revision"][kind]["accuracy"]], fmt="o", color=colour, markersize=6)
        third.set_xticks(range(3), ["preserved", "suppressed", "the teacher's\nwords"], fontsize=8)
        third.set(xlim=(-0.6, 2.6), ylim=(0, 1), ylabel="accuracy, 95 %")
    else:
        third.text(0.5, 0.5, "no rollout revises", ha="center", transform=third.transAxes)

    fourth.set_title("Accuracy: preserved minus suppressed", fontsize=10)
    if gains:
        _bars(fourth, range(len(gains)), list(gains.values()), fmt="o", color=BLUE, markersize=6)
        fourth.set_xticks(range(len(gains)), list(gains), fontsize=8)
        fourth.set(xlim=(-0.6, len(gains) - 0.4), ylabel="gain, 95 %")
        fourth.axhline(0, color="black", linewidth=0.6)
    else:
        fourth.text(0.5, 0.5, "no rollout revises", ha="center", transform=fourth.transAxes)
    return figure


def _forced(axes: Axes, places: dict[str, Any], name: str, label: str) -> None:
    from recipes.diagnose.forks import PLACE_NAMES

    names = [place for place in PLACE_NAMES if place in places]
    styles = {"teacher": (RED, "the teacher's top choice"), "student": (GREY, "the student's own")}
    for offset, (kind, (colour, legend)) in enumerate(styles.items()):
        known = [i for i, place in enumerate(names) if name in places[place][kind]]
        if known:
            _bars(
                axes, [i + 0.24 * (offset - 0.5) for i in known], [places[names[i]][kind][name] for i in known],
                fmt="o", color=colour, markersize=5, label=legend,
            )  # fmt: skip
    shown = [100 * places[place]["teacher"]["changed"].value for place in names]
    axes.set_xticks(
        range(len(names)),
        [f"{PLACE_NAMES[p]} token\n{share:.0f} % changed" for p, share in zip(names, shown, strict=True)],
        fontsize=8,
    )
    axes.set(xlim=(-0.5, len(names) - 0.5), ylabel=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
