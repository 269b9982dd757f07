"""The rows of LongPO's own model card and paper, to stand beside ours.

Source: the README of github.com/DAMO-NLP-SG/LongPO, and arXiv 2502.13922. RULER is the mean over 4K, 8K, 16K, 32K, 64K
and 128K. The paper does not say the exact settings of the short tasks.
"""

from collections.abc import Sequence

from megatron_longpo.errors import UserError

SOURCE = "LongPO's model card (DAMO-NLP-SG/LongPO on GitHub) and arXiv 2502.13922"

PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "ruler": {
        "Qwen2.5-7B-Instruct": (82.10, 80.09, 74.50, 54.30, 76.50),
        "Qwen2.5-7B-LongPO-128K": (95.82, 89.71, 78.67, 59.40, 87.11),
        "Mistral-7B-Instruct-v0.2": (72.60, 74.40, 64.40, 52.20, 68.40),
        "Mistral-7B-LongPO-128K": (96.88, 96.49, 71.55, 64.81, 88.02),
        "Mistral-7B-LongPO-256K-EXP": (96.80, 97.00, 69.14, 64.87, 87.65),
        "Mistral-7B-LongPO-512K-EXP": (97.28, 97.48, 69.22, 64.92, 88.00),
    },
    "infinitebench": {
        "GPT-4-128K": (14.73, 22.44, 67.25, 34.81),
        "Qwen2-72B": (24.32, 7.03, 72.05, 34.47),
        "LLaMA 3.1-70B": (33.55, 36.08, 69.00, 46.21),
        "LLaMA 3.1-8B": (28.06, 30.47, 58.08, 38.87),
        "GLM-4-9B": (14.84, 9.51, 67.25, 30.53),
        "GLM-4-9B-1M": (28.3, 9.7, 68.6, 35.53),
        "LWM-7B-1M": (4.33, 0.0, 3.06, 2.46),
        "YaRN-Mistral-7B": (9.09, 9.55, 27.95, 15.53),
        "Mistral-7B-Instruct-v0.2": (22.13, 4.93, 14.41, 13.82),
        "Mistral-7B-SFT-128K": (23.44, 13.45, 53.21, 30.03),
        "Mistral-7B-DPO-128K": (15.21, 10.34, 48.14, 25.56),
        "Mistral-7B-LongPO-128K": (27.05, 23.51, 67.25, 39.27),
        "Mistral-7B-LongPO-256K-EXP": (28.16, 24.43, 66.35, 39.65),
        "Mistral-7B-LongPO-512K-EXP": (29.10, 27.85, 66.67, 41.21),
        "Qwen2.5-7B-Instruct": (22.89, 6.08, 52.4, 27.12),
        "Qwen2.5-7B-LongPO-128K": (32.06, 17.32, 72.05, 40.48),
    },
    "short": {
        "Mistral-7B-Instruct-v0.2": (59.15, 59.26, 83.2, 78.4, 70.00),
        "Mistral-7B-LongPO-128K": (59.99, 59.34, 82.99, 78.53, 70.21),
        "Mistral-7B-LongPO-256K-EXP": (59.47, 60.28, 83.14, 78.14, 70.26),
        "Mistral-7B-LongPO-512K-EXP": (59.51, 60.58, 82.87, 77.66, 70.16),
        "Qwen2.5-7B-Instruct": (74.28, 67.15, 81.41, 74.66, 74.38),
        "Qwen2.5-7B-LongPO-128K": (73.64, 65.70, 80.82, 74.98, 73.79),
    },
}
"""Suite -> model -> the columns of `suites`, as printed. InfiniteBench's "iter1" has the released model's name."""

_SUITE_NOTES = {
    "ruler": "Published rows are means over 4K to 128K tokens.",
    "short": "The paper does not say the exact settings of its short tasks: compare differences between models, not "
    "published scores with ours.",
}
_ROW_NOTES = {
    ("ruler", "Mistral-7B-Instruct-v0.2"): "The published row of Mistral-7B-Instruct-v0.2 was printed with one digit.",
    ("infinitebench", "Mistral-7B-DPO-128K"): "The published average of Mistral-7B-DPO-128K, 25.56, is not the mean of "
    "its columns, 24.56.",
}


def published_notes(suite: str, names: Sequence[str]) -> list[str]:
    """What must be known of a suite's published rows; nothing of rows that are not shown."""
    there = [name for name in names if name in PUBLISHED[suite]]
    notes = [_SUITE_NOTES[suite]] if there and suite in _SUITE_NOTES else []
    return notes + [_ROW_NOTES[suite, name] for name in there if (suite, name) in _ROW_NOTES]


def choose_published(names: Sequence[str]) -> list[str]:
    """The published models that are to be shown: ``["all"]``, ``["none"]`` or their names.

    Raises:
        UserError: a name that is none of them.
    """
    there = list(dict.fromkeys(name for rows in PUBLISHED.values() for name in rows))
    if list(names) in (["all"], ["none"]):
        return there if names[0] == "all" else []
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"--published {unknown[0]!r}: give all, none, or names from: {', '.join(there)}")
    return [name for name in there if name in names]
