"""What leaves a run: merged weights, checked, and model cards."""
