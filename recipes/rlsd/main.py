"""Train with RLSD, self-distilled RLVR: `python -m recipes.rlsd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("rlsd")
