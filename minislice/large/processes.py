"""Several processes share one calibration set: each has its share of the sequences, all have the same covariance.

They are the processes of `torch.distributed` (started by torchrun, on one machine or more); without it there is one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")


class Lost(Exception):
    """Another process of the run ended before its work was done."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun has started with this one, if it has started any.

    Raises:
        Lost: one of the others ended meanwhile.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_index())
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:
        raise Lost(
            f"process {index()} of {count()} lost another process, which has told why above or was killed ({error}); "
            "run the same command again: with --stream it goes on where it was"
        ) from error
    finally:
        distributed.destroy_process_group()


def local_index() -> int:
    """Of this process among those on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def index() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(items: Sequence[Item]) -> list[Item]:
    """The part of this process, of what all processes hold.

    Raises:
        ValueError: there are fewer than processes.
    """
    if len(items) < count():
        raise ValueError(
            f"{count()} processes can't share {len(items)} calibration batches; start fewer processes, or give more "
            "calibration sequences"
        )
    return list(items[index() :: count()])


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count() > 1:
        distributed.all_reduce(tensor)
    return tensor


def once(compute: Callable[[], tuple[Tensor, ...]], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the first process computes, for all of them; `like` are tensors of the shapes that come out."""
    if count() == 1:
        return compute()
    results = [tensor.contiguous() for tensor in compute()] if index() == 0 else list(map(torch.empty_like, like))
    for tensor in results:
        distributed.broadcast(tensor, src=0)
    return tuple(results)


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        distributed.barrier()
