"""Train with SRPO, sample-routed policy optimization: `python -m recipes.srpo.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("srpo")
