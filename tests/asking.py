"""Many who ask for room at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Barrier, Thread

from stagecast.disk import Disk
from stagecast.errors import NotEnoughSpace


def asked_at_once(disks: Sequence[Disk], needed: int = 300, count: int = 12) -> tuple[list[int], list[int]]:
    """Have so many threads reserve so many bytes at once, by turns on these disks, and keep them until all have asked.

    Return what each of those that got it saw promised in all, and what each of the refused was told was promised.
    """
    ready, leave, held, refused = Barrier(count), Barrier(count), list[int](), list[int]()

    def ask(disk: Disk) -> None:
        ready.wait()
        try:
            with disk.reserve(needed):
                held.append(sum(promise.left for promise in disk.promises()))
                leave.wait()
        except NotEnoughSpace as error:
            refused.append(error.promised)
            leave.wait()

    threads = [Thread(target=ask, args=(disks[number % len(disks)],)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return held, refused
