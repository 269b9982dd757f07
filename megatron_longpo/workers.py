"""What every worker process begins with."""

import multiprocessing
import os
import signal
import threading


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and their queue never reports its end: they hold both sides.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
