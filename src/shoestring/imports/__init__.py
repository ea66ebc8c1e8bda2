"""What was made elsewhere becomes a run file: one module a source, from its files or through its own SDK."""
