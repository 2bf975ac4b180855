"""Training the stages under DeepSpeed."""
