"""Train with EOPD, entropy-aware on-policy distillation: `python -m recipes.eopd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("eopd", experiment="qwen3_1_7b_openthoughts")
