"""Train with HEPO, high-entropy tokens only: `python -m recipes.hepo.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("hepo")
