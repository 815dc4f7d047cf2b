"""Who computes how many tokens in the next step? Integers only: no tensors, locks, text or time."""
