"""What test groups of processes do: small, and without anything heavy to import."""

from shoestring.errors import Interrupted
from shoestring.train.watch import Signals
from shoestring.train.world import current


def fail(log) -> None:
    """Process 1 fails in a way nobody foresaw, while the other waits for it."""
    if current().rank == 1:
        raise LookupError("no such thing")
    current().of_all(None)


def add_up_and_wait(numbers: list[int], log) -> None:
    """The first process tells the sum of all shares of the numbers; all stop where a signal came to it."""
    import torch

    world = current()
    with Signals().listening() as signals:
        log(int(world.total_of_shares(torch.tensor(sum(world.share(numbers))))))
        while not current().of_first(lambda: signals.received):
            pass
        raise Interrupted(f"stopped by {current().of_first(lambda: signals.received)}")
