"""The entry point of ``stagecast`` and ``python -m stagecast``: Ctrl-C ends it without a word, whenever it comes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130


def main() -> int:
    """Run the command line, and return its exit code; what it imports takes long enough for a Ctrl-C in between."""
    # Whoever starts us with Ctrl-C ignored, as a shell does in the background, means that.
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if is_heeded:
            signal.signal(signal.SIGINT, _leave)
        from stagecast import cli

        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if is_heeded:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: an exception would be printed by an import, or by what the interpreter does at its end."""
    del number, frame
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
