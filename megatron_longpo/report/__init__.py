"""The report on training runs: curves, recipes and evaluations on one page."""
