"""The judge: checks that need none, the questions, the panel's verdicts, and how far it can be believed."""
