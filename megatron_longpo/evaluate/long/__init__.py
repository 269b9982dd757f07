"""Long-context tasks: their prompts, and answers to them."""
