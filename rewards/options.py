"""Options of the reward: what counts, how much, and how grading is bounded. All are flat keys of ``reward_kwargs``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

# verl passes these of its own accord if a reward model is served; a verifiable reward has no use for them.
IGNORED = frozenset({"reward_router_address", "reward_model_tokenizer"})
Options = TypeVar("Options", bound="MixOptions")


@dataclass(frozen=True)
class MixOptions:
    """The mix: correctness_weight · correctness + format_weight · format + overlong_weight · overlong.

    DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13) falls linearly from 0 to -1 over the last
    ``overlong_buffer`` tokens before ``max_response_length``.

    Attributes:
        correct_value: correctness of a right answer (DAPO: 1).
        wrong_value: correctness of any other (DAPO: -1).
        timeout_value: correctness if grading failed ("timeout" or "error"); None for ``wrong_value``.
        correctness_weight: in the mix.
        format_weight: in the mix.
        overlong_weight: in the mix.
        max_response_length: tokens; None for no overlong component.
        overlong_buffer: tokens; None for no overlong component.
        tokenizer: path of the tokenizer that counts tokens, needed only if ``extra_info`` has no ``response_length``.

    Raises:
        ValueError: values contradict each other.
    """

    correct_value: float = 1.0
    wrong_value: float = 0.0
    timeout_value: float | None = None
    correctness_weight: float = 1.0
    format_weight: float = 0.0
    overlong_weight: float = 0.0
    max_response_length: int | None = None
    overlong_buffer: int | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if (self.max_response_length is None) != (self.overlong_buffer is None):
            raise ValueError(
                f"max_response_length={self.max_response_length} and overlong_buffer={self.overlong_buffer} belong "
                "together; set both (DAPO: 20480 and 4096) or neither"
            )
        if self.overlong_buffer is not None and not 0 < self.overlong_buffer <= self.max_response_length:
            raise ValueError(
                f"overlong_buffer={self.overlong_buffer} must lie between 1 and max_response_length="
                f"{self.max_response_length}; DAPO uses a fifth of it"
            )
        if self.overlong_weight and self.overlong_buffer is None:
            raise ValueError(
                f"overlong_weight={self.overlong_weight} needs max_response_length and overlong_buffer (in tokens); "
                "set them, or overlong_weight=0"
            )
        if self.correct_value <= self.wrong_value:
            raise ValueError(
                f"correct_value={self.correct_value} must exceed wrong_value={self.wrong_value}, or being right would "
                "not be rewarded"
            )

    @classmethod
    def from_kwargs(cls: type[Options], kwargs: dict[str, Any]) -> Options:
        """Options from ``reward_kwargs``.

        Args:
            kwargs: fields of the class; what verl adds of its own accord is passed over.

        Raises:
            ValueError: a key is none; the message names all that are.
        """
        known = {field.name for field in fields(cls)}
        unknown = set(kwargs) - known - IGNORED
        if unknown:
            raise ValueError(f"unknown reward option(s) {sorted(unknown)}; reward_kwargs takes {sorted(known)}")
        return cls(**{key: value for key, value in kwargs.items() if key in known})


@dataclass(frozen=True)
class RewardOptions(MixOptions):
    """The mix, and how a mathematical answer is found and compared.

    Attributes:
        answer_line: accept DAPO's "Answer: …" line if there is no box.
        deadline_s: see ``rewards.grader.Grader``, as for the following.
        cpu_s: likewise.
        children: likewise.
        memory_mb: likewise.
        cache_size: likewise.
    """

    answer_line: bool = False
    deadline_s: float = 10.0
    cpu_s: float = 2.0
    children: int = 2
    memory_mb: int = 1024
    cache_size: int = 65536


@lru_cache(maxsize=64)
def _read(kind: type[Options], items: tuple) -> Options:
    return kind.from_kwargs(dict(items))


def read_options(kind: type[Options], kwargs: dict[str, Any]) -> Options:
    """Options of a reward function, remembered, since it is called with the same ones every time.

    Args:
        kind: the class of the options.
        kwargs: as in `MixOptions.from_kwargs`.

    Raises:
        ValueError: a key is none, or values contradict each other.
    """
    return _read(kind, tuple(sorted((key, value) for key, value in kwargs.items() if key not in IGNORED)))
