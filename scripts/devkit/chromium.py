"""A Chromium for the tests that drive the editor: found, or installed where the system's package manager may."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
# package manager -> commands, run in order
INSTALL = {
    "apt-get": (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]),
    "dnf": (["install", "-q", "-y", "chromium", "dejavu-sans-fonts"],),
    "pacman": (["-Sy", "--noconfirm", "chromium", "ttf-dejavu"],),
    "apk": (["add", "--quiet", "chromium", "font-dejavu"],),
}
HINTS = {"darwin": "brew install --cask chromium", "win32": "choco install chromium"}


def find() -> Path | None:
    """STILLMOTION_CHROMIUM, else a Chromium, Chrome or Edge of the system."""
    if chosen := os.environ.get("STILLMOTION_CHROMIUM"):
        return Path(chosen)
    on_path = (shutil.which(program) for program in PROGRAMS)
    known = (place for place in PLACES if Path(place).exists())
    return next((Path(found) for found in (*on_path, *known) if found), None)


def install() -> str | None:
    """Install Chromium if it is missing; None when there is one now, else the reason why not."""
    if find():
        return None
    if hint := HINTS.get(sys.platform):
        return f"no Chromium, Chrome or Edge was found; install one, for instance with: {hint}"
    manager = next((name for name in INSTALL if shutil.which(name)), None)
    if manager is None:
        return "no Chromium was found and no package manager that could install it"
    if (rights := _rights()) is None:
        return f"no Chromium was found and installing it needs root: sudo {manager} {' '.join(INSTALL[manager][-1])}"
    return _install(manager, rights)


def _install(manager: str, rights: list[str]) -> str | None:
    print(f"installing Chromium with {manager}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in INSTALL[manager]:
        command = [*rights, manager, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if ended.returncode:
            said = " ".join((ended.stderr or ended.stdout).split())[-300:]
            return f"Chromium could not be installed: `{' '.join(command)}` ended with code {ended.returncode}: {said}"
    return None if find() else f"{manager} installed Chromium under a name that is not known here"


def _rights() -> list[str] | None:
    """What to put before a command that needs root; None if we have no such right."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None
