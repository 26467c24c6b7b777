"""Train with PW-OPSD, position-weighted self-distillation: `python -m recipes.pw_opsd.main [overrides]`."""

from recipes.entry import main

if __name__ == "__main__":
    main("pw_opsd", experiment="qwen3_4b_openthoughts")
