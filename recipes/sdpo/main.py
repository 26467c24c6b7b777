"""Train with SDPO, self-distillation policy optimization: `python -m recipes.sdpo.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("sdpo")
