"""The command line: thin shells over the recipe; bodies import what they need when called."""
