"""Train with REOPOLD, relaxed on-policy distillation: `python -m recipes.reopold.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("reopold", experiment="qwen3_1_7b_openthoughts")
