"""Refusals of what is to be learned: credit, loss, teacher, exposure, and the precision that they need.

Every check takes the resolved configuration and the `Method` read from it, and yields a sentence for each problem.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from advantage.estimators import ESTIMATORS, AdditiveParams
from recipes.common.checks.errors import closest
from recipes.common.method import Method
from recipes.common.record.collapse import collapse_params
from recipes.common.teacher.contexts import CONTEXTS, FROM_GROUP, OF_RESPONSES

TEACHER_CONTEXTS = CONTEXTS


def parameters(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse values that the dataclasses of credit, loss, teacher and exposure do not take, and unknown estimators.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, with the problems found on reading it.
    """
    yield from method.problems
    if "router_signal" in method.signals:
        yield (
            "algorithm.dasd.router=external: it routes on a router_signal that nothing in a training run computes; set "
            "algorithm.dasd.router to entropy, position, token_frequency, gradient_norm or attention_entropy"
        )
    if method.estimator is None and method.credit not in _verls_estimators():
        known = sorted({*ESTIMATORS, *_verls_estimators()})
        yield (
            f"algorithm.adv_estimator={method.credit}: there is no such estimator; one of {', '.join(known)}"
            + closest(method.credit, known)
        )


def collapse(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Check the bands that a run is watched by.

    Args:
        cfg: the resolved configuration.
        method: read from it.

    Yields:
        A sentence for each mistake.
    """
    try:
        collapse_params(cfg.self_distill)
    except ValueError as error:
        yield str(error)


def _verls_estimators() -> set[str]:
    """Names of verl's own estimators; importing them takes seconds, so only a name that is not ours asks."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    return {str(getattr(name, "value", name)) for name in ADV_ESTIMATOR_REGISTRY}


def teacher(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a teacher that would be shown nothing of use, and groups that A_G cannot compare.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    contexts, n = method.contexts, cfg.actor_rollout_ref.rollout.n
    if "has_teacher" in method.signals and not (method.uses_teacher and contexts.may_be_missing):
        which = f"self_distill.teacher.teaches={contexts.teaches}, so each has one"
        yield (
            f"algorithm.adv_estimator={method.credit}: it trains the responses that a teacher does not, but "
            + (which if method.uses_teacher else f"self_distill.loss.kind={method.loss.kind}, so there is no teacher")
            + "; choose a divergence, and set self_distill.teacher.teaches=failed"
        )
    if not method.uses_teacher:
        return
    for kind in contexts.named:
        key = "context" if kind in contexts.kinds else "fallback"
        if kind == "problem":
            yield (
                f"self_distill.teacher.{key}=problem: with the student's own prompt the teacher would be the student, "
                "or an older one, and have nothing to teach; show it the solution or the answer"
            )
        elif kind not in TEACHER_CONTEXTS:
            yield f"self_distill.teacher.{key}={kind}: must be one of {', '.join(TEACHER_CONTEXTS)}"
        elif kind in FROM_GROUP and n < 2:
            yield (
                f"self_distill.teacher.{key}={kind} with actor_rollout_ref.rollout.n={n}: a sibling is another "
                "response to the same problem; set rollout.n to 2 or more"
            )
    shown = list(contexts.kinds)
    if method.contrasts and len(shown) < 2:
        yield (
            f"self_distill.teacher.context={shown[0]}: the credit contrasts what the teacher is shown with something "
            "else; name both, as in self_distill.teacher.context=[sibling,wrong_sibling]"
        )
    if len(shown) > 1 and not method.contrasts:
        yield (
            f"self_distill.teacher.context=[{','.join(shown)}]: nothing in algorithm.adv_estimator={method.credit} or "
            f"in the loss contrasts them; name one, as in self_distill.teacher.context={shown[0]}"
        )
    if method.loss.active and method.context == "wrong_sibling" and contexts.wrong_siblings > 1:
        yield (
            f"self_distill.teacher.wrong_siblings={contexts.wrong_siblings} with self_distill.loss.kind="
            f"{method.loss.kind}: the divergence has one teacher; set it to 1"
        )


def teacher_validation(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Check that the teacher's own validation has a teacher, a validation that it is a part of, and something to show.

    Args:
        cfg: the resolved configuration.
        method: read from it.

    Yields:
        A sentence for each mistake.
    """
    every, usual = cfg.self_distill.teacher.test_freq, cfg.trainer.test_freq
    if every <= 0:
        return
    key = f"self_distill.teacher.test_freq={every}"
    if not method.uses_teacher:
        yield f"{key}: {method.name} has no teacher; set it to -1"
        return
    if usual <= 0 or every % usual:
        yield f"{key}: must be a multiple of trainer.test_freq={usual}, whose validations it is a part of"
    if method.context in OF_RESPONSES:
        yield (
            f"{key} with self_distill.teacher.context={method.context}: that belongs to responses of a step, and a "
            "validation problem has none; set test_freq to -1"
        )
    loops = cfg.actor_rollout_ref.rollout.agent
    if loops.agent_loop_manager_class is None or loops.default_agent_loop != "seeded_single_turn":
        yield (
            f"{key}: other agent loops than ours render prompts themselves; set actor_rollout_ref.rollout.agent."
            "agent_loop_manager_class=workers.rollout.bursts.BurstAgentLoopManager and default_agent_loop="
            "seeded_single_turn"
        )


def responses(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse references in the place of responses with a credit of another kind, or with what only sampled ones have.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    if method.responses not in ("sampled", "reference"):
        yield f"self_distill.responses={method.responses}: must be sampled or reference"
    if (method.credit == "sft") != method.trains_references:
        yield (
            f"self_distill.responses={method.responses} with algorithm.adv_estimator={method.credit}: references are "
            "trained on by sft and by nothing else; set both, or choose method=sft"
        )
    if method.trains_references and cfg.actor_rollout_ref.rollout.calculate_log_probs:
        yield (
            "self_distill.responses=reference with actor_rollout_ref.rollout.calculate_log_probs=true: nothing is "
            "sampled, so the rollout has none; set it to false"
        )


def groups(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse groups of one response if the credit uses A_G, which compares the responses to a problem.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    n = cfg.actor_rollout_ref.rollout.n
    if n < 2 and method.compares_groups:
        yield (
            f"actor_rollout_ref.rollout.n={n}: a group advantage compares at least "
            "2 rollouts of a problem; the papers take 8"
        )


def distillation(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse what our engine cannot do with a full-vocabulary loss, or with a teacher that has weights of its own.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    loss, weights = method.loss, method.weights.weights
    if method.token_weight is not None and not loss.active:
        yield (
            f"self_distill.loss.weighting={loss.weighting} with self_distill.loss.kind=none: there is no "
            "divergence to weigh; choose a kind, or weighting=uniform"
        )
    weighed, weight = method.weight_params, method.token_weight
    elsewhere = weight is not None and weight.node != method.credit  # so that no advantage is made by these parameters
    if elsewhere and isinstance(weighed, AdditiveParams):
        for name in ("beta", "target_ratio"):
            given, untouched = getattr(weighed, name), getattr(type(weighed)(), name)
            if given not in (None, untouched):
                yield (
                    f"algorithm.{loss.weighting}.{name}={given} with self_distill.loss.weighting={loss.weighting}: the "
                    f"factor of a divergence is self_distill.loss.coefficient; leave {name} at "
                    f"{'null' if untouched is None else untouched}"
                )
    if elsewhere and weighed is not None and weighed.weight_remembers:
        yield (
            f"self_distill.loss.weighting={loss.weighting}: under these parameters the weights follow the advantages "
            f"of the steps before, and only algorithm.adv_estimator={loss.weighting} takes those in; choose a router "
            "that does not learn"
        )
    rollouts = cfg.actor_rollout_ref.rollout.temperature
    if "teacher_entropy" in method.signals and loss.temperature not in (None, rollouts):
        yield (
            f"self_distill.loss.temperature={loss.temperature:g} with weighting={loss.weighting}: the teacher's "
            f"entropy is that of its scores, at the rollouts' temperature of {rollouts}, and it weighs a "
            "divergence at the same; set it to null"
        )
    if not (loss.active or method.teacher_copy):
        return
    what = f"self_distill.loss.kind={loss.kind}" if loss.active else f"self_distill.teacher.weights={weights}"
    actor = cfg.actor_rollout_ref.actor
    if actor.strategy != "fsdp2":
        yield (
            f"{what} with actor_rollout_ref.actor.strategy={actor.strategy}: the teacher's engine is FSDP2's; set "
            "it to fsdp2"
        )
    engine = actor.get("fsdp_config", {})
    shards = max(
        int(actor.get("ulysses_sequence_parallel_size", 1) or 1),
        int(engine.get("ulysses_sequence_parallel_size", 1) or 1),
    )
    if shards > 1:
        yield (
            f"{what} with ulysses_sequence_parallel_size={shards}: the teacher's and the student's prompts differ in "
            "length, so their shards do not hold the same tokens; set it to 1"
        )
    if engine.get("pad_to_length", False):
        yield (
            f"{what} with actor_rollout_ref.actor.fsdp_config.pad_to_length=true: padded rows have no teacher; set "
            "it to false"
        )
    if weights == "ema" and engine.get("model_dtype") not in (None, "fp32", "float32"):
        yield (
            "self_distill.teacher.weights=ema with "
            f"actor_rollout_ref.actor.fsdp_config.model_dtype={engine.model_dtype}: the average would round its "
            "updates away; set it to fp32"
        )
    if cfg.get("distillation", {}).get("enabled", False):
        yield f"{what} with distillation.enabled=true: verl's own distillation uses the same hook; set it to false"


def exposure(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse an exposure (ATESD) that has no reasoning to show in part, no teacher, or no probe to learn from.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    mode = f"self_distill.exposure.mode={method.exposure.mode}"
    if method.truncates and set(method.contexts.named) != {"solution"}:
        yield (
            f"{mode} with self_distill.teacher.context={','.join(method.contexts.named)}: there is no reasoning to "
            "show in part; set self_distill.teacher.context=solution"
        )
    params = method.exposure
    if not params.active:
        if params.difficulty_strength > 0:
            yield (
                f"self_distill.exposure.difficulty_strength={params.difficulty_strength} with mode=full: there is no "
                "exposure to condition; set self_distill.exposure.mode to fixed, random or learned"
            )
        return
    if not method.uses_teacher:
        yield (
            f"{mode}, but neither algorithm.adv_estimator={cfg.algorithm.adv_estimator} nor the loss uses a teacher: "
            "set it to full, or choose a method with one"
        )
    if params.probe_file is None and params.mode == "learned":
        yield (
            "self_distill.exposure.probe_file=null: must be a prepared file of held-out problems where mode=learned: "
            "the controller reads the probe's likelihood"
        )
    controller = method.controller
    if controller is not None and params.mode == "learned" and controller.counterfactual:
        credit = "self_distill.exposure.controller.credit=counterfactual"
        if not method.loss.active or method.scores_with_teacher:
            yield (
                f"{credit} with algorithm.adv_estimator={method.credit} and self_distill.loss.kind={method.loss.kind}: "
                "an update is tried at another exposure with the same advantages, so the exposure must act through the "
                "divergence alone; set a loss.kind and adv_estimator=grpo, or another credit"
            )


def schedule(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Check that a learning rate that falls linearly has our engine, and is not 0 before the end.

    Args:
        cfg: the resolved configuration.
        method: read from it.

    Yields:
        A sentence for each mistake.
    """
    linear, steps, strategy = (
        cfg.self_distill.linear_decay_steps,
        cfg.trainer.total_training_steps,
        cfg.actor_rollout_ref.actor.strategy,
    )
    if linear is None:
        return
    if strategy != "fsdp2":
        key = f"self_distill.linear_decay_steps={linear}"
        yield f"{key} with actor_rollout_ref.actor.strategy={strategy}: set it to fsdp2"
    if steps is not None and steps > linear:
        yield (
            f"self_distill.linear_decay_steps={linear} with trainer.total_training_steps={steps}: the learning rate "
            f"would be 0 from step {linear + 1} on; train at most {linear} steps"
        )


def too_short_to_learn(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Warn of an exposure controller that would stay random to the end of the run.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.
    """
    controller, steps = method.controller, cfg.trainer.total_training_steps
    if not method.truncates or method.exposure.mode != "learned" or controller is None or steps is None:
        return
    needed = controller.credited_after + (controller.decisions_per_update - 1) * controller.hold
    if steps <= needed:
        yield (
            f"self_distill.exposure.mode=learned for trainer.total_training_steps={steps}: the controller first learns "
            f"after {needed} updates (lookahead + (decisions_per_update − 1) × hold), so it stays random to the end; "
            "train longer, or shorten self_distill.exposure.controller.lookahead and .hold"
        )


# The reduction of a divergence that averages as the PPO clip does.
SAME_MEAN = {"token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean"}


def two_denominators(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Warn of a divergence that is averaged otherwise than the PPO clip beside it.

    Args:
        cfg: the resolved configuration.
        method: read from it.

    Yields:
        The warning, where there is cause.
    """
    mode, reduction = cfg.actor_rollout_ref.actor.loss_agg_mode, method.loss.reduction
    if method.loss.active and method.loss.ppo and SAME_MEAN.get(mode) != reduction:
        fix = next((name for name, own in SAME_MEAN.items() if own == reduction), mode)
        yield (
            f"self_distill.loss.reduction={reduction} beside actor_rollout_ref.actor.loss_agg_mode={mode}: the two "
            f"terms are averaged differently; actor_rollout_ref.actor.loss_agg_mode={fix} gives them one denominator"
        )


def cut_siblings(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Warn if the teacher is shown other responses and has no room for a long one.

    Args:
        cfg: the resolved configuration.
        method: read from it.

    Yields:
        The warning, where there is cause.
    """
    needed = cfg.data.max_prompt_length + cfg.data.max_response_length
    shown = [kind for kind in method.contexts.named if kind in FROM_GROUP]
    if method.uses_teacher and shown and method.max_prompt_length < needed:
        yield (
            f"self_distill.teacher.max_prompt_length={method.max_prompt_length} with context {shown[0]}: a problem "
            f"and a response take up to {needed} tokens, and the end of a longer response, its answer, is cut off; "
            f"self_distill.teacher.max_prompt_length={needed} shows all of them"
        )


def precision(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse settings with which the teacher's log-probs or the entropies would not be exact.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; it may read entropies without a teacher.
    """
    reads_entropy = not {"entropy", "teacher_entropy"}.isdisjoint(method.signals)
    if not (method.uses_teacher or reads_entropy):
        return
    arr = cfg.actor_rollout_ref
    if not arr.model.use_remove_padding:
        yield (
            "actor_rollout_ref.model.use_remove_padding=false: verl then computes entropies in bfloat16, off by up to "
            "0.18 nat, and the teacher in the loss needs packed sequences; set it to true"
        )
    if reads_entropy and not arr.actor.entropy_from_logits_with_chunking:
        yield (
            "actor_rollout_ref.actor.entropy_from_logits_with_chunking=false: entropies would be bfloat16, off "
            "by up to 0.18 nat, and they decide the tokens' credit; set it to true"
        )
    if cfg.algorithm.rollout_correction.get("bypass_mode", False):
        yield (
            "algorithm.rollout_correction.bypass_mode=true: verl then skips the pass that gives the student's "
            "log-probs and entropies, which the teacher's are compared with; set it to false"
        )
    if arr.actor.get("use_fused_kernels", False) or arr.model.use_fused_kernels:
        yield (
            "actor_rollout_ref.model.use_fused_kernels=true: its entropies are not full-precision, and it has no "
            "logits for the teacher to be compared with; set it to false"
        )
