"""Engines in actors of a real Ray cluster on this machine, which the quick tests share."""

import asyncio
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.pair import read_pairs
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion, Request
from megatron_longpo.generate.journal import Journal, Shard
from megatron_longpo.generate.on_ray.ray_engines import open_ray_engines
from megatron_longpo.generate.on_ray.ray_runner import run_shard_on_ray
from megatron_longpo.generate.run import Work
from megatron_longpo.journal import journal_lines
from tests.unit.generate.model_by_rule import Counts, ModelByRule, make_context
from tests.unit.generate.run_by_rule import HEADER, NUM_CONTEXTS, SETTINGS, contexts, join, run

pytestmark = pytest.mark.ranks
ONE = Shard(1, 1)


@contextmanager
def ray_cluster(**head: Any) -> Iterator[Any]:
    """Its processes end with this one, whatever becomes of it; its workers find the engines that stand in tests/."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # which it expects, and only ray.init makes
    folder = tempfile.mkdtemp(prefix="ray-")  # tmp_path is too long for the sockets in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
        cluster = Cluster()
        for attempt in range(3):
            try:
                cluster.add_node(temp_dir=folder, include_dashboard=False, **head)
                break
            except Exception:  # Ray's own: it gives a node 30 s to start, which a busy machine may need
                if attempt == 2:
                    raise
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster(num_cpus=2) as cluster:
        yield cluster.address


class Remote(ModelByRule):
    """In an actor: its process and every request it gets are noted in a folder."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        super().__init__(delay_s=delay_s)
        self.notes = folder / str(os.getpid())
        self.notes.touch()

    async def complete(self, request: Request) -> Completion:
        with self.notes.open("a") as file:
            file.write("request\n")
        return await super().complete(request)


class NeverTheSame(Remote):
    """Answers by chance, as a server does."""

    async def complete(self, request: Request) -> Completion:
        chance = Request(
            messages=request.messages,
            sampling=request.sampling,
            seed=random.randrange(2**31),
            context=request.context,
        )
        return await super().complete(chance)


class Breaks(Remote):
    """Its server goes away after some answers."""

    async def complete(self, request: Request) -> Completion:
        if len(self.requests) == 10:
            raise UserError("the server is gone")
        return await super().complete(request)


class Ends(Remote):
    """Its process does not survive a certain document."""

    async def complete(self, request: Request) -> Completion:
        if make_context(7).text.strip() in request.messages[0]["content"]:
            os._exit(1)
        return await super().complete(request)


class DiesAtBirth(Remote):
    """Its process does not survive the opening."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        super().__init__(folder, delay_s)
        os._exit(1)


def open_one(kind: type[Remote], folder: Path, delay_s: float) -> Remote:
    return kind(folder, delay_s)


def cannot_open() -> Remote:
    raise UserError("models/none: no such folder")


class KillsAt(Counts):
    """Kills the process of the engine that got most requests, whenever so many answers have come."""

    def __init__(self, notes: Path, *num_answers: int) -> None:
        super().__init__()
        self.notes, self.num_answers, self.killed = notes, num_answers, set[str]()

    def answered(self, completion: Completion) -> None:
        super().answered(completion)
        if self.answers in self.num_answers:
            alive = [path for path in self.notes.iterdir() if path.name not in self.killed]
            busiest = max(alive, key=lambda path: path.stat().st_size).name
            self.killed.add(busiest)
            os.kill(int(busiest), signal.SIGKILL)


async def run_on_ray(
    folder: Path,
    address: str,
    kind: type[Remote] = Remote,
    observer: Counts | None = None,
    *,
    delay_s: float = 0.02,
    num_gpus: int = 0,
    all_at_once: bool = False,
) -> None:
    """A run on two engines; its notes and its journal lie in the folder.

    Args:
        all_at_once: wait for both; else one may be done before the other has come up.
    """
    (folder / "notes").mkdir(exist_ok=True)
    open_engine = functools.partial(open_one, kind, folder / "notes", delay_s)
    engines = await open_ray_engines(open_engine, num_engines=2, num_gpus_per_engine=num_gpus, address=address)
    try:
        for number in range(2 if all_at_once else 0):
            await engines.opened(number)
        with Journal(folder / "journal", ONE, {**HEADER, "engine": dict(engines.identity)}) as journal:
            work = Work(settings=SETTINGS, control_token=None, observer=observer or Counts())
            await run_shard_on_ray(contexts(ONE), engines, journal, work)
            journal.end({})
    finally:
        await engines.aclose()


def requests(folder: Path) -> dict[str, int]:
    """Process of an engine -> requests it got."""
    return {path.name: path.read_text().count("request") for path in (folder / "notes").iterdir()}


def answers(folder: Path) -> list[dict[str, Any]]:
    lines = [line for _, _, line in journal_lines(folder / "journal" / ONE.file_name)]
    return [line for line in lines if line["kind"] == "answer"]


def output(folder: Path) -> bytes:
    join(folder)
    return (folder / "pairs.jsonl").read_bytes()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run without Ray."""
    folder = tmp_path_factory.mktemp("local")
    asyncio.run(run(folder, ONE, ModelByRule(), Counts()))
    join(folder)
    return folder


def check_like_local(folder: Path, local: Path) -> None:
    """The same pairs, byte for byte, and every request in the journal once."""
    assert output(folder) == (local / "pairs.jsonl").read_bytes()
    keys = Counter(line["key"] for line in answers(folder))
    assert keys == Counter(line["key"] for line in answers(local))
    assert set(keys.values()) == {1}


def test_two_engines_give_what_the_local_runner_gives(
    tmp_path: Path, address: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Counts()
    monkeypatch.chdir(tmp_path)  # the actors are to understand a path that is relative here
    asyncio.run(run_on_ray(Path(), address, observer=observer, all_at_once=True))
    check_like_local(tmp_path, local)
    asked = requests(tmp_path)
    assert (observer.answers, observer.documents) == (len(answers(local)), NUM_CONTEXTS)
    assert len(asked) == 2 and min(asked.values()) > 0 and sum(asked.values()) == observer.answers


@pytest.mark.slow
def test_killed_engines_are_replaced(tmp_path: Path, address: str, local: Path) -> None:
    observer = KillsAt(tmp_path / "notes", 20, 60)
    asyncio.run(run_on_ray(tmp_path, address, observer=observer, delay_s=0.1))
    check_like_local(tmp_path, local)
    asked = requests(tmp_path)
    assert len(observer.killed) == 2 and len(asked) >= 3
    assert min(asked[pid] for pid in observer.killed) > 0


@pytest.mark.slow
def test_a_pair_is_made_of_journalled_answers_also_when_a_second_answer_would_differ(
    tmp_path: Path, address: str
) -> None:
    asyncio.run(run_on_ray(tmp_path, address, NeverTheSame, KillsAt(tmp_path / "notes", 30), delay_s=0.1))
    output(tmp_path)
    texts = {line["text"] for line in answers(tmp_path)}
    turns = [turn for _, pair in read_pairs([tmp_path / "pairs.jsonl"]) for turn in pair.turns]
    used = [text for turn in turns for text in (turn.chosen, turn.rejected)]
    assert set(used) <= texts
    assert set(Counter(line["key"] for line in answers(tmp_path)).values()) == {1}


def test_an_engine_that_fails_ends_the_run_and_the_next_goes_on(tmp_path: Path, address: str, local: Path) -> None:
    with pytest.raises(UserError, match=r"^the server is gone$"):
        asyncio.run(run_on_ray(tmp_path, address, Breaks))
    num_before, asked_before = len(answers(tmp_path)), sum(requests(tmp_path).values())
    assert 0 < num_before <= 20
    asyncio.run(run_on_ray(tmp_path, address))
    check_like_local(tmp_path, local)
    assert sum(requests(tmp_path).values()) - asked_before == len(answers(local)) - num_before


async def open_and_close(open_engine: Callable[[], Any], address: str, num_gpus: int = 0) -> None:
    engines = await open_ray_engines(open_engine, num_engines=1, num_gpus_per_engine=num_gpus, address=address)
    await engines.aclose()


def test_an_engine_that_cannot_be_opened_ends_the_run(address: str) -> None:
    with pytest.raises(UserError, match=r"^models/none: no such folder$"):
        asyncio.run(open_and_close(cannot_open, address))


def test_too_few_gpus(address: str) -> None:
    with pytest.raises(UserError, match=r"--num-engines 1: they need 8 GPUs, the Ray cluster has 0; lower it"):
        asyncio.run(open_and_close(cannot_open, address, num_gpus=8))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "Ray's client protocol does not carry"),
        ("localhost:1", "cannot be connected to .*refused.*; start the cluster with 'ray start --head'"),
        ("head", "cannot be connected to "),
    ],
)
def test_what_cannot_be_connected_to(address: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--ray-address {address}: {message}"):
        asyncio.run(open_and_close(cannot_open, address))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'megatron-longpo\[ray\]', or leave --runner local"):
        asyncio.run(open_and_close(cannot_open, "localhost:1"))


@pytest.mark.slow
def test_a_document_that_no_engine_survives_ends_the_run(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"^5 engines ended one after the other while they worked on .*book-7\b"):
        asyncio.run(run_on_ray(tmp_path, address, Ends))
    lines = [line for _, _, line in journal_lines(tmp_path / "journal" / ONE.file_name)]
    assert "book-7" not in [line["pair"]["id"] for line in lines if line["kind"] == "document" and line["pair"]]


@pytest.mark.slow
def test_an_engine_that_does_not_survive_its_opening_ends_the_run(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"^an engine's process ended 5 times while it was opened \("):
        asyncio.run(run_on_ray(tmp_path, address, DiesAtBirth))


class RemovesNode(Counts):
    """Takes a machine out of the cluster, for good, when both engines are at work."""

    def __init__(self, cluster: Any, node: Any, folder: Path) -> None:
        super().__init__()
        self.cluster, self.node, self.folder, self.is_removed = cluster, node, folder, False

    def answered(self, completion: Completion) -> None:
        super().answered(completion)
        if not self.is_removed and sum(number >= 5 for number in requests(self.folder).values()) == 2:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.is_removed = True


@pytest.mark.slow
def test_a_machine_lost_for_good_leaves_its_documents_to_the_others(tmp_path: Path, local: Path) -> None:
    with ray_cluster(num_cpus=1, num_gpus=1) as cluster:
        observer = RemovesNode(cluster, cluster.add_node(num_cpus=1, num_gpus=1), tmp_path)
        asyncio.run(run_on_ray(tmp_path, cluster.address, observer=observer, delay_s=1, num_gpus=1))
    check_like_local(tmp_path, local)
    assert observer.is_removed
    assert len(requests(tmp_path)) == 2 and sum(requests(tmp_path).values()) > len(answers(local))
