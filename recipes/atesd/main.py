"""Train with ATESD, self-distillation at a learned teacher exposure: `python -m recipes.atesd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("atesd", experiment="qwen3_4b_openthoughts")
