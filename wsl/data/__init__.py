"""From an index to batches of tensors."""
