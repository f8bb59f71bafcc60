"""The processes that share one run: those that torchrun has started, on one machine or more, or this one alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")


class Lost(Exception):
    """Another process of the run ended before its work was done."""


class Processes:
    """The processes of a run, which talk to one another in `torch.distributed`'s own group; by default one alone."""

    def __init__(self, count: int = 1, index: int = 0):
        self.count, self.index, self.is_first = count, index, index == 0

    def firsts(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of the first process; every process gives tensors of the same shapes."""
        if self.count > 1:
            tensors = [tensor.contiguous() for tensor in tensors]
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)
        return tuple(tensors)

    def gathered(self, item: Item) -> list[Item]:
        """The items that all processes give, in the order of the processes."""
        items = [item] * self.count
        if self.count > 1:
            distributed.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Return when every process has called this."""
        self.gathered(None)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started, or this one alone; `Lost` if another one ends meanwhile."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(distributed.get_node_local_rank(0))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    processes = Processes(distributed.get_world_size(), distributed.get_rank())
    try:
        yield processes
    except torch.OutOfMemoryError:  # this process's own
        raise
    except RuntimeError as error:
        raise Lost(
            f"process {processes.index} of {processes.count} lost another process, which has told why above or was "
            f"killed ({error}); run the same command again: with --stream it goes on where it was"
        ) from error
    finally:
        distributed.destroy_process_group()
