"""What only a GPU can show: exactness in bf16, speed and memory at length, each with its goal and a verdict."""
