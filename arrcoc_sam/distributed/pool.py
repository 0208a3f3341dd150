"""A pool of Ray actors that are dealt numbers: of parts, shards, images.

Ray is started here, or a cluster is joined; nothing of what is computed goes through it but the numbers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from arrcoc_sam.errors import ArrcocSamError, InputError, MissingExtraError, explain, first_line

__all__ = ["ActorPool", "OnRay"]

# Blocks between which Ray may choose where to go on; each holds the numbers of a few parts.
_MOST_BLOCKS = 4096

# Of a Ray that is started here: numbers of parts go through its store, nothing else.
_STORE_BYTES = 1 << 28
_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """What all engines on Ray are told.

    Attributes:
        address: Of the cluster, as for ``ray.init``; None starts Ray on this machine, or takes the one that is running
            in this process.
        actors: How many; by default one a GPU of the cluster, or one a core where there is none.
        gpus_per_actor: Of a GPU; by default 1 where the cluster has any and the engine's device is not "cpu". Less lets
            several share one, so that images are read while others are encoded.
        threads: Of PyTorch on the CPU, and cores that an actor asks for.
    """

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers, and that Ray is there: models may be loaded before it is asked.

        Raises:
            InputError: One is out of its range.
            MissingExtraError: Ray is not installed.
        """
        for name in ("actors", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(explain(f"{name}={value}", "at least 1"))
        share = self.gpus_per_actor
        if share is not None and not (0 <= share <= 1 or (share > 1 and share == int(share))):
            raise InputError(explain(f"gpus_per_actor={share}", "a share in [0, 1], or a whole number"))
        if find_spec("ray") is None:
            raise MissingExtraError.of("ray", "ray")

    def pool(self, device: str) -> ActorPool:
        """The actors, on a device."""
        options = {field.name: getattr(self, field.name) for field in fields(OnRay)}
        return ActorPool(device, **options)


@dataclass(frozen=True)
class ActorPool(OnRay):
    """Actors that take numbers; its options are those of :class:`OnRay`.

    Attributes:
        device: What the actors compute on: GPUs are asked for unless it is "cpu".
    """

    device: str

    def map(self, actor: type, given: tuple[Any, ...], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """What actors answer each number with, in the order in which they are done.

        Args:
            actor: Made with ``given`` and the keyword ``threads``; called with ``{"part": one number}``.
            given: Sent to every actor.
            numbers: At least one.

        Raises:
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised.
        """
        ray = _import_ray()
        with _cluster(ray, self.address, cores=self.threads * (self.actors or 1)):
            size, gpus = self._size(ray)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            items = [{"part": number} for number in numbers]
            parts = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))
            answers = parts.map_batches(
                actor,
                fn_constructor_args=given,
                fn_constructor_kwargs={"threads": self.threads},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(size, len(items))),
                num_cpus=self.threads,
                num_gpus=gpus or None,
            )
            try:
                yield from answers.iter_rows()
            except Exception as error:
                raise _ours(error) from error

    def _size(self, ray: Any) -> tuple[int, float]:
        """Number of actors, and GPUs for each."""
        resources = ray.cluster_resources()
        available = resources.get("GPU", 0.0) if self.device == "auto" or self.device.startswith("cuda") else 0.0
        gpus = self.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if available else 0.0
        if gpus > available:
            came = f"gpus_per_actor={gpus:g} with device={self.device!r} and {available:g} GPUs in the cluster"
            raise InputError(
                explain(came, "no more than there are", "leave gpus_per_actor (--gpus-per-actor) out on CPUs")
            )
        if self.actors is not None:
            return self.actors, gpus
        most = available / gpus if gpus else resources.get("CPU", 1.0) / self.threads
        return max(1, int(most)), gpus


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError.of("ray", "ray") from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None, *, cores: int) -> Iterator[None]:
    """Ray, started or joined; stopped at the end where it was not running before.

    Args:
        ray: The module.
        address: Of a cluster to join.
        cores: A cluster started here counts at least so many, or actors would wait for them for ever.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        _start(ray, cores)
    else:
        _join(ray, address)
    try:
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, cores: int) -> None:
    """Start Ray on this machine; on a busy one its patience of half a minute may run out, so more than once."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",  # not one that happens to run here: it is joined by its address
                num_cpus=max(cores, os.cpu_count() or 1),
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises half a dozen kinds, and the bare one where a start takes too long
            ray.shutdown()
            if left:
                continue
            came, mend = f"Ray does not start here ({first_line(error)})", "try again when the machine is less busy"
            mend = f"{mend}, or do without Ray (--engine local)"
            raise InputError(explain(came, "a machine with room for it", mend)) from error


def _join(ray: Any, address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # as above
        came = f"no Ray cluster at {address!r} ({first_line(error)})"
        raise InputError(explain(came, "its address, or none to start one here", "see docs/cluster.md")) from error


def _knock(address: str, seconds: float = 5.0) -> None:
    """See that somebody listens at a host and port: Ray would try for a minute and longer.

    Raises:
        OSError: Nobody does.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:  # Ray says what is wrong with it
        return
    if host is not None and port is not None:
        socket.create_connection((host, port), timeout=seconds).close()


def _ours(error: BaseException) -> BaseException:
    """What an actor raised, where it is one of our errors, out of Ray's wrapping."""
    at: BaseException | None = error
    for _ in range(20):
        if at is None:
            break
        if isinstance(at, ArrcocSamError):
            words = next((line for line in reversed(str(at).strip().splitlines()) if "Error: " in line), str(at))
            kind: type[ArrcocSamError] = next(k for k in type(at).__mro__ if k.__module__ == ArrcocSamError.__module__)
            return kind(words.split("Error: ", 1)[-1])
        at = getattr(at, "cause", None) or at.__cause__
    return error
