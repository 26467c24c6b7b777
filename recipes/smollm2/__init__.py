"""A real language model on a laptop: SmolLM2-135M-Instruct, from the weights that a Python package carries."""
