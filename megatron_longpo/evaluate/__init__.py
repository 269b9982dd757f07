"""Evaluation on long and short contexts: what the answers of a model are worth."""
