"""The starter's tokenizer: single characters, plus one token for each fixed phrase of the prompts.

A unigram model with a hand-written vocabulary.  The long phrases of `recipes.common.teacher.prompts` are single pieces,
so that a prompt costs a few dozen tokens; everything that a response can contain is one token a character, but for
blank lines, ``\\boxed{`` and the markers.  Text is not normalised and other characters fall back to bytes, so decoding
gives back what was encoded.  Loads through ``AutoTokenizer`` with no code of ours.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from recipes.common.teacher import prompts
from recipes.starter.task import MARKERS, PROBLEM_PREFIX

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SPECIAL = (PAD, START, END, THINK_OPEN, THINK_CLOSE)

# Qwen3's layout.  A generation prompt with enable_thinking=false closes the thinking at once, in student and
# teacher prompts alike.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def _vocabulary() -> list[tuple[str, float]]:
    """Pieces with their scores.  The segmentation with the highest sum wins: fewer pieces, hence the longest."""
    phrases = [
        "Problem: ",
        PROBLEM_PREFIX,
        prompts.BOXED_INSTRUCTION,
        prompts.REFERENCE.notice,
        prompts.REFERENCE_BEGIN,
        prompts.REFERENCE_END,
        prompts.REFERENCE.transition,
        "system",
        "user",
        "assistant",
        "\n\n",
        "\\boxed{",
        *(f" {marker} " for marker in MARKERS),
        *MARKERS,
    ]
    characters = ["\n", *(chr(code) for code in range(0x20, 0x7F))]
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(piece, -1.0) for piece in phrases + characters]
    # Byte pieces are for fallback only: a literal "<0x41>" in a text must stay six characters.
    return pieces + [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]


def build_tokenizer(max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Make the tokenizer from nothing; `max_length` is the model's number of positions."""
    backend = Tokenizer(models.Unigram(_vocabulary(), unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, THINK_OPEN, THINK_CLOSE],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )


def render(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a prompt, thinking off, ready for the response's first token.

    Args:
        tokenizer: whose chat template is used.
        messages: of the chat, with ``role`` and ``content``.
    """
    return prompts.render(tokenizer, messages, {"enable_thinking": False})


def truncate_reference(tokenizer, solution: str, exposure: float) -> str:
    """The first ``floor(exposure * n)`` of the reasoning's n tokens, then the boxed answer, which is always kept.

    Args:
        tokenizer: that counts the tokens.
        solution: reasoning, then the boxed answer.
        exposure: share in [0, 1].
    """
    cut = solution.rindex("\\boxed{")
    reason, answer = solution[:cut], solution[cut:]
    ids = tokenizer(reason, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[: int(exposure * len(ids))]) + answer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        tokenizer: what is saved.
        folder: where.
    """
    tokenizer.save_pretrained(folder)
    # transformers 5 writes names that 4 does not know; these are read by both.
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
