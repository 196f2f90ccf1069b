"""The runtime of reversible chains; it knows nothing of recipes, sources or the command line."""
