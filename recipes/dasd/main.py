"""Train with DASD, direction-adaptive self-distillation: `python -m recipes.dasd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("dasd")
