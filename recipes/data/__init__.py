"""Makes training and evaluation files of datasets (`recipes.data.prepare`), and inspects them (`.validate`)."""
