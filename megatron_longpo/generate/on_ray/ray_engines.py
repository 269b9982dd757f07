"""Engines on a Ray cluster: connecting to it, opening them in actors, replacing those that die, letting them go."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.on_ray.ray_actor import EngineActor, Opened, OpenEngine
from megatron_longpo.generate.procedure import Outcome

MAX_DEATHS = 5
"""Deaths of actors under one document or one opening; so many are not bad luck."""
CONNECT_S = 20
"""Time for the head of a cluster to take a connection."""
POLL_S = 0.5
"""Between two looks at an actor that is not there yet."""
CLOSING_S = 30
"""Engines that take longer to let go are ended."""


async def open_ray_engines(
    open_engine: OpenEngine, *, num_engines: int, num_gpus_per_engine: float, address: str | None = None
) -> "RayEngines":
    """Connect to a Ray cluster, start engines on it, and wait for the first.

    Args:
        open_engine: makes an engine, inside its actor.
        num_gpus_per_engine: GPUs that Ray keeps for an actor and shows to it alone.
        address: ``host:port`` of the cluster's head, ``auto`` for the cluster that this machine is part of, None for
            the environment's RAY_ADDRESS; where that is not set either, a cluster of this machine alone is started.

    Raises:
        UserError: no Ray, no cluster at the address, too few GPUs in it, or the engine cannot be opened.
    """
    ray = _ray()
    try:
        _connect(ray, address)
        _require_gpus(ray, num_engines, num_gpus_per_engine)
        # Ray restarts an actor that died; who was waiting for it hears of it, and decides what to ask again.
        remote = ray.remote(EngineActor).options(
            num_cpus=0, num_gpus=num_gpus_per_engine, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        engines = RayEngines(ray, [remote.remote(open_engine, Path.cwd()) for _ in range(num_engines)])
    except BaseException:
        ray.shutdown()
        raise
    try:
        await engines.wait_for_first()
    except BaseException:
        await engines.aclose()
        raise
    return engines


class RayEngines:
    """Engines of one kind on a Ray cluster; made by `open_ray_engines`."""

    identity: Mapping[str, str]
    """Identity of each of them, see `Engine`."""
    context_limits: Mapping[Context, int]

    def __init__(self, ray: Any, actors: list[Any]) -> None:
        """Begin to open the engines of new actors."""
        self._ray = ray
        self.actors = actors
        errors = ray.exceptions
        self.losses = (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.OutOfMemoryError)
        """Raised by Ray where an actor or its machine is gone, or what was on its way from there."""
        self._openings = [asyncio.create_task(self.open(actor)) for actor in actors]

    async def wait_for_first(self) -> None:
        """Wait until one of them can answer; the others may come later."""
        done, _ = await asyncio.wait(self._openings, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop().result()
        self.identity, self.context_limits = first.identity, first.context_limits

    async def opened(self, number: int) -> Opened:
        """Wait until the engine of that number can answer for the first time; raises what `open` raises."""
        return self._like_the_first(await asyncio.shield(self._openings[number]))

    async def reopened(self, number: int) -> Opened:
        """The same after its actor was lost."""
        return self._like_the_first(await self.open(self.actors[number]))

    async def open(self, actor: Any) -> Opened:
        """Open the engine of an actor; waits while Ray has no place for the actor, or starts it anew.

        Raises:
            UserError: as it was raised there, or the actor's process did not survive it.
        """
        loss: Exception | None = None
        for _ in range(MAX_DEATHS):
            await self._started(actor)
            try:
                return await actor.opened.remote()
            except self._ray.exceptions.RayTaskError as error:
                raise _raised_there(error) from None
            except self.losses as error:
                loss = error
        raise UserError(
            f"an engine's process ended {MAX_DEATHS} times while it was opened ({ray_says(loss)}); the reason stands "
            "in the worker's log in Ray's session folder"
        ) from loss

    async def _started(self, actor: Any) -> None:
        while True:
            try:
                return await actor.started.remote()
            except self._ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(POLL_S)
            except self.losses as error:
                raise UserError(
                    f"an engine's actor cannot be started on the Ray cluster ({ray_says(error)}); megatron-longpo must "
                    "be installed on all its machines"
                ) from error

    async def document(self, number: int, *arguments: Any) -> AsyncGenerator[tuple[str, Completion] | Outcome]:
        """`EngineActor.document` of that engine, as a task.

        Raises:
            UserError: as it was raised there.
            One of ``losses``: the actor is gone.
        """
        try:
            async for result in self.actors[number].document.options(num_returns="streaming").remote(*arguments):
                yield await result
        except self._ray.exceptions.RayTaskError as error:
            raise _raised_there(error) from None

    async def aclose(self) -> None:
        """Let the engines go, and the cluster if it was started for them."""
        for opening in self._openings:
            opening.cancel()
        results = await asyncio.gather(*self._openings, return_exceptions=True)
        closing = [
            asyncio.ensure_future(actor.aclose.remote())
            for actor, result in zip(self.actors, results, strict=True)
            if isinstance(result, Opened)
        ]
        try:
            if closing:
                await asyncio.wait(closing, timeout=CLOSING_S)
            await asyncio.gather(*(future for future in closing if future.done()), return_exceptions=True)
        finally:
            for actor in self.actors:
                self._ray.kill(actor)
            self._ray.shutdown()

    def _like_the_first(self, opened: Opened) -> Opened:
        first, other = ({**it.identity, **it.context_limits} for it in (self, opened))
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"the engines on the Ray cluster differ ({name}: {first.get(name)!r} and {other.get(name)!r}); "
                    "have the same model and packages on all its machines, and machines of one kind"
                )
        return opened


def ray_says(error: object) -> str:
    """What Ray says in several lines, without its advice."""
    return " ".join(str(error).split())[:200]


def _connect(ray: Any, address: str | None) -> None:
    """Connect to the cluster, or to a new one of this machine."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise UserError(
            f"--ray-address {address}: Ray's client protocol does not carry what tasks yield; start generate on a "
            "machine of the cluster, with the head's host:port or with auto"
        )
    try:
        if address not in ("local", "auto"):
            _require_listener(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray-address {address}: cannot be connected to ({ray_says(error)}); start the cluster with 'ray start "
            "--head', and generate on one of its machines with the head's host:port or with auto"
        ) from error


def _require_listener(address: str) -> None:
    """Raise OSError or ValueError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _require_gpus(ray: Any, num_engines: int, num_gpus_per_engine: float) -> None:
    needed, there = num_engines * num_gpus_per_engine, ray.cluster_resources().get("GPU", 0)
    if needed > there:
        raise UserError(
            f"--num-engines {num_engines}: they need {needed:g} GPUs, the Ray cluster has {there:g}; lower it, or "
            "start Ray on more machines first"
        )


def _raised_there(error: Any) -> BaseException:
    """What a user can fix as it was raised in the actor; a defect with the actor's traceback."""
    return error.cause if isinstance(error.cause, UserError) else error


def _ray() -> Any:
    return import_optional("ray", "--runner ray needs Ray", extra="ray", advice=", or leave --runner local")
