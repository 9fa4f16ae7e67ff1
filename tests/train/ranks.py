"""Run a function in several gloo ranks; what rank 0 returns comes back."""

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import distributed


def run_ranks(function: Callable[..., Any], world_size: int, scratch: Path, *args: Any) -> Any:
    """Call ``function(*args)`` in each rank of a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = scratch / f"rank0-{port}.pt"
    torch.multiprocessing.spawn(
        _rank, (world_size, port, result, function, args), nprocs=world_size
    )
    return torch.load(result, weights_only=True)


def _rank(
    rank: int, world_size: int, port: int, result: Path, function: Callable[..., Any], args: Any
) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    returned = function(*args)
    if rank == 0:
        torch.save(returned, result)
    distributed.barrier()
    distributed.destroy_process_group()
