"""LongPO (arXiv 2502.13922) on Megatron-Core: short-to-long preference training in one shared pass."""

__version__ = "0.1.0"
