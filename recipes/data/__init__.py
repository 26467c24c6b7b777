"""From public datasets to files that train: `recipes.data.prepare`, and their inspection: `recipes.data.validate`."""
