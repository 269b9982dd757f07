"""Short-context tasks, by lm-eval."""
