"""SIGTERM ends the process at once, whatever it is computing, but not without a word."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_sigterm(act: Callable[[], int]) -> None:
    """On SIGTERM run `act` and end the process with the status that it returns.

    Python's own handlers wait until the main thread is back from C, which a long compilation is
    not; the descriptor is written at once, and a thread of its own reads it, as soon as that C
    lets other threads run. To be called from the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def wait() -> None:
        # Every signal that Python handles is written here, an interrupt from the keyboard too.
        while os.read(reader, 1) != bytes([signal.SIGTERM]):
            pass
        status = 1
        try:
            status = act()
        finally:
            os._exit(status)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()
