"""Counts every tensor alive while the real code runs on meta tensors, which have shapes but no numbers.

A storage counts from the operation that makes it until nothing refers to it, once, rounded up as torch's CUDA allocator
does. Nothing is computed, so a step of a 7B model at 131,072 tokens is counted in seconds on any machine. What a kernel
allocates inside itself is not seen: it is added from a formula while the kernel runs, as the part "kernel workspace".
"""

import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.meta_device import Tracker

ROUND_TO = 512
"""Bytes (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""
OTHER = "other"


@dataclass(slots=True)
class Alive:
    """A storage, and the tensor that it was made for."""

    part: str
    size: int
    """Bytes, rounded."""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    line: str = ""
    """Where it was made: the innermost line of this package or of Megatron, and the operation."""


@dataclass(slots=True)
class Peak:
    """The moment at which most was alive, of all moments of one kind."""

    total: int = 0
    line: str = ""
    alive: list[Alive] = field(default_factory=list[Alive])

    def by_part(self) -> dict[str, int]:
        """Bytes of each part."""
        found: dict[str, int] = {}
        for one in self.alive:
            found[one.part] = found.get(one.part, 0) + one.size
        return found


class MemoryTracker(Tracker):
    """Use as a context, around building the model and around the step."""

    def __init__(self, parts: Mapping[str, str], workspace: Callable[[Any, Sequence[Any]], int]) -> None:
        """Start with nothing alive.

        Args:
            parts: "file.py" or "file.py:function" -> the part that all it makes belongs to, whoever calls it.
            workspace: bytes that the kernel behind an operation allocates inside itself, by operation and arguments.
        """
        super().__init__()
        self.phase = ""
        """What is being done; with the part at work it is the kind of a moment."""
        self.working: list[str] = [OTHER]
        """The parts that are at work, the innermost last: what is made belongs to it."""
        self.peaks: dict[tuple[str, str], Peak] = {}
        """(phase, part at work) -> the worst moment."""
        self.total = 0
        """Bytes alive now."""
        self._parts, self._workspace = parts, workspace
        self._alive: dict[int, Alive] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._within_kernel = 0

    def start(self, phase: str) -> None:
        """Begin a phase."""
        gc.collect()
        self.phase = phase

    def mark(self, tensors: Iterable[Tensor], part: str) -> None:
        """Say what these tensors are, whoever made them."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in self._alive:
                self._add(tensor, part, "")
            self._alive[key].part = part

    @contextmanager
    def one_kernel(self) -> Iterator[None]:
        """What is made and forgotten inside is not counted: in a fused kernel it never reaches memory."""
        self._within_kernel += 1
        try:
            yield
        finally:
            self._within_kernel -= 1
        self._look(_place(sys._getframe(1)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        new = [x for x in tree_leaves(found) if isinstance(x, Tensor) and x.is_meta and not self._is_known(x)]
        workspace = self._workspace(func, args)
        if new or workspace:
            frame = sys._getframe(1)
            part = self._part_at(frame)
            line = f"{_place(frame)} {str(func).removesuffix('.default')}"
            for tensor in new:
                if not self._is_known(tensor):  # two results may share a storage
                    self._add(tensor, part, line)
            self._look(line, part, workspace)
        return found

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._alive

    def _add(self, tensor: Tensor, part: str, line: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // ROUND_TO) * ROUND_TO
        self._alive[key] = Alive(part, size, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), line)
        self._references[key] = weakref.ref(storage, lambda _: self._remove(key))
        self.total += size

    def _remove(self, key: int) -> None:
        del self._references[key]
        self.total -= self._alive.pop(key).size

    def _look(self, line: str, part: str = "", workspace: int = 0) -> None:
        if self._within_kernel:
            return
        peak = self.peaks.setdefault((self.phase, self._part_at_work(part)), Peak())
        if self.total + workspace > peak.total:
            peak.total, peak.line = self.total + workspace, line
            peak.alive = list(self._alive.values())
            if workspace:
                peak.alive.append(Alive("kernel workspace", workspace, line=line))

    def _part_at_work(self, part: str) -> str:
        """Of a moment: the head is no module, so it is known by its lines."""
        return part if part == "log-prob head" else self.working[-1]

    def _part_at(self, frame: FrameType | None) -> str:
        while frame is not None:
            file = frame.f_code.co_filename.rpartition("/")[2]
            for name in (file, f"{file}:{frame.f_code.co_name}"):
                if name in self._parts:
                    return self._parts[name]
            frame = frame.f_back
        return self.working[-1]


def _place(frame: FrameType | None) -> str:
    """The innermost line of this package, or of Megatron where it is called by autograd or by Megatron."""
    while frame is not None:
        for root in ("/megatron_longpo/", "/megatron/core/"):
            file = frame.f_code.co_filename
            if root in file and not file.endswith("/platform.py"):
                return f"{root.strip('/')}/{file.rpartition(root)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "autograd"
