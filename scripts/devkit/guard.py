"""Runs a command, and ends it when the parent process has ended, even by a kill: our standard input is closed then.

    python guard.py COMMAND [ARGUMENT ...]

This is a separate program, because without it ComfyUI would keep running, with its port and its memory, when the parent
process is killed.
"""

import os
import signal
import subprocess
import sys
import threading

PATIENCE = 3  # seconds between terminate and kill


def main() -> int:
    for name in ("SIGINT", "SIGBREAK"):  # the command receives them as well, and we wait for it to end
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_input, args=(child,), daemon=True).start()
    return child.wait()


def end_with_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # nothing is ever written; a buffered read would block our own exit
        pass
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main())
