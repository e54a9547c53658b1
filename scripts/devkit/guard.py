"""Runs a command, and ends it when whoever asked for it is gone, killed or not: then our standard input ends.

    python guard.py COMMAND [ARGUMENT ...]

A program of its own, not imported: ComfyUI would go on without us, holding its port and its memory.
"""

import os
import signal
import subprocess
import sys
import threading

PATIENCE = 3  # seconds between asking and forcing


def main() -> int:
    for name in ("SIGINT", "SIGBREAK"):  # the command gets them too, and we wait for what it makes of them
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_input, args=(child,), daemon=True).start()
    return child.wait()


def end_with_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # nobody writes; a buffered read would disturb our own end
        pass
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main())
