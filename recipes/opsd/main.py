"""Train with OPSD, full-vocabulary on-policy self-distillation: `python -m recipes.opsd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("opsd", experiment="qwen3_1_7b_openthoughts")
