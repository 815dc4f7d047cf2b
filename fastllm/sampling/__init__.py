"""Which token? Logits to an id, log-probabilities, and when to stop. NumPy only, no model."""
