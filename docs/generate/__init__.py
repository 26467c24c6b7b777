"""Pages of the documentation site that are made of the package itself: configuration keys, papers, modules, methods."""
