"""Train with RLCSD, contrastive self-distillation: `python -m recipes.rlcsd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("rlcsd")
