"""How much the log-prob head takes at once."""

CHUNK_BYTES = 128 * 2**20
"""Size of one chunk's fp32 logits. A few arrays of this size are alive at the worst moment: well below 1 GB."""
