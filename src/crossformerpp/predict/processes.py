"""Several processes that share one prediction, on one machine or several, as torchrun starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=30)  # the slowest process may be that much later than the fastest


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def started(cls) -> "Processes":
        """As torchrun says in its variables; else a single one."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))

    def tell(self, content: Any) -> Any:
        """What the first process passes, in all of them; waits until each has come here."""
        if self.world == 1:
            return content
        distributed = self._connected()
        box = [content]
        distributed.broadcast_object_list(box, src=0)
        distributed.barrier()
        return box[0]

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            self._connected().barrier()

    def _connected(self) -> Any:
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        return torch.distributed


def local_rank() -> int:
    """Number of this process on its machine, which chooses its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))
