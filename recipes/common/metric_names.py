"""Names of the numbers in ``metrics.jsonl`` that more than one module must know, each defined once.

Names of single methods stand in their estimators' modules (`advantage.labels.Metric`), those of the divergence in
`workers.training.metrics`, where they are made.
"""

from __future__ import annotations

from advantage.labels import Metric
from workers.training.metrics import DISAGREEMENT, IMPORTANCE_CLIPPED, MEAN

# verl's own.
REWARD, ENTROPY, THROUGHPUT = "critic/score/mean", "actor/entropy", "perf/throughput"
LENGTH, CUT_SHARE = "response_length/mean", "response_length/clip_ratio"
STEP_SECONDS, TRAINED = "timing_s/step", "training/global_step"  # a record has TRAINED where it is of a training step

# What a step left out.
ROLLOUTS_MISSING = "training/rollouts_missing"
SKIPPED, SKIPPED_TOTAL = "training/skipped_updates", "training/skipped_updates_total"

# Steps in a row that entropy, length or reward are outside their bands; where that is a collapse, of each of them its
# number of steps and the level that it is measured against, the last step before and its checkpoint (-1: there is
# none); and that the run ends for it.
OUTSIDE, COLLAPSED, COLLAPSE_LEVEL = "collapse/steps_outside", "collapse/{}/steps_outside", "collapse/{}/level"
LAST_GOOD, LAST_GOOD_CHECKPOINT, COLLAPSE_STOPS = (
    "collapse/last_good_step",
    "collapse/last_good_checkpoint",
    "collapse/stops",
)

# What student and teacher say of the sampled tokens, nats.
STUDENT_LOG_PROB, TEACHER_LOG_PROB = "student/log_prob/mean", "teacher/log_prob/mean"
GAP, GAP_SIZE = "teacher/log_prob_gap/mean", "teacher/log_prob_gap/abs_mean"
CONTRAST_SIZE, TEACHER_ENTROPY = "teacher/contrast_gap/abs_mean", "teacher/entropy/mean"
ENTROPY_QUANTILE = "student/entropy/p{:02d}"
MEASURED = "student/{}/mean"  # other signals of the student's pass

# The teacher's prompts: share whose reference was cut, tokens, share whose reference had to be shown whole.
PROMPT_TRUNCATED, PROMPT_TOKENS, FORCED_FULL = (
    "teacher/prompt_truncated",
    "teacher/prompt_tokens/mean",
    "exposure/forced_full",
)

# Share of responses that the teacher had nothing to be shown for, texts that a response is contrasted with, and what
# the teacher read in all.
WITHOUT_CONTEXT, CONTRASTED, TEACHER_TOKENS = "teacher/without_context", "teacher/contrasted/mean", "teacher/tokens"

# The teacher's accuracy on the validation problems, and the shares and seconds that belong to it.
TEACHER_VALIDATION = "teacher/validation"
TEACHER_VALIDATION_WITHOUT, TEACHER_VALIDATION_SECONDS = (
    "teacher/validation/without_context",
    "teacher/validation/seconds",
)

# The probe: nats a token, and the mean log-prob that the exposed teacher gives.
PROBE_NLL, PROBE_GROUNDED, PROBE_LOSS = "probe/nll", "probe/grounded", "probe/loss"
PROBE_COUNTERFACTUAL = "probe/counterfactual_loss"  # after an update at another exposure, which was taken back
EXPOSURE, EXPOSURE_MEAN = "exposure/alpha", "exposure/mean"
EXPOSURE_A, EXPOSURE_B = "exposure/a", "exposure/b"  # of the Beta that it was drawn from

# Shown of every method that has them, before its own.
SHARED = (
    Metric(
        MEAN,
        "Divergence from the teacher",
        "per token, nats, weighted and clipped as in the loss; it may be negative",
        short="div",
        form="{:.4f}",
    ),
    Metric(
        DISAGREEMENT,
        "Top-1 disagreement",
        "share of tokens where student and teacher prefer different ones",
        line="share",
        percent=True,
        from_zero=True,
    ),
    Metric(
        EXPOSURE,
        "Exposure α",
        "share of the reference's reasoning that the teacher sees",
        line="in force",
        also=((EXPOSURE_MEAN, "policy's mean"),),
        short="exposure",
        form="{:.2f}",
    ),
    Metric(
        "divergence/weight/positive_share",
        "Share of positive weights",
        "tokens whose divergence from the teacher is reduced; at 0 it is left alone, below it grows",
        line="share",
        percent=True,
        idle=1.0,
    ),
    Metric(
        WITHOUT_CONTEXT,
        "Responses without a teacher",
        "of those that it is to teach: there was nothing to show it, and they get no credit from it",
        line="share",
        percent=True,
        idle=0.0,
    ),
    Metric(
        TEACHER_VALIDATION,
        "Teacher's validation accuracy",
        "of the policy under the teacher's prompts, mean of the sets",
        line="accuracy",
        percent=True,
    ),
    Metric(
        TEACHER_ENTROPY,
        "Entropy of the teacher",
        "over the vocabulary, nats a token, where the method reads it",
        from_zero=True,
    ),
    Metric(
        IMPORTANCE_CLIPPED,
        "Importance ratios at their bound",
        "tokens of the divergence that the policy gives much more probability than at the rollout",
        line="share",
        percent=True,
        from_zero=True,
        idle=0.0,
    ),
    Metric(PROBE_NLL, "Probe", "negative log-likelihood of held-out solutions, nats a token", line="NLL"),
)
