"""Papers' tables and figures from one command each, and all methods compared: `python -m recipes.reproduce.main`."""
