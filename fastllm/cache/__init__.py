"""What does a request leave behind? Blocks of the KV cache."""
