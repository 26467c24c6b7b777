"""Train by supervised fine-tuning on the data's solutions: `python -m recipes.sft.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("sft", experiment="qwen3_1_7b_openthoughts")
