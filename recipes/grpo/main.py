"""Train with GRPO, the baseline without a teacher: `python -m recipes.grpo.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("grpo")
