"""A Chromium for the tests that drive the editor: finds one, or installs it with the system's package manager."""

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
    """The browser that STILLMOTION_CHROMIUM names, else a Chromium, Chrome or Edge of the system."""
    if path := os.environ.get("STILLMOTION_CHROMIUM"):
        return Path(path)
    on_path = (shutil.which(program) for program in PROGRAMS)
    elsewhere = (place for place in PLACES if Path(place).exists())
    return next((Path(path) for path in (*on_path, *elsewhere) if path), None)


def install() -> str | None:
    """Install Chromium if it is missing. Returns None on success, else the reason for the failure."""
    if find():
        return None
    if hint := HINTS.get(sys.platform):
        return f"no Chromium, Chrome or Edge was found; install one, for example with: {hint}"
    manager = next((name for name in INSTALL if shutil.which(name)), None)
    if manager is None:
        return "no Chromium was found, and no package manager that could install it; install one yourself"
    if (rights := _rights()) is None:
        command = " ".join(INSTALL[manager][-1])
        return f"no Chromium was found, and its installation needs root; install it with: sudo {manager} {command}"
    return _install(manager, rights)


def _install(manager: str, rights: list[str]) -> str | None:
    print(f"installing Chromium with {manager}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in INSTALL[manager]:
        command = [*rights, manager, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if result.returncode:
            message = " ".join((result.stderr or result.stdout).split())[-300:]
            return f"Chromium could not be installed: `{' '.join(command)}` failed ({result.returncode}): {message}"
    return None if find() else f"{manager} installed Chromium under an unknown name; set STILLMOTION_CHROMIUM to it"


def _rights() -> list[str] | None:
    """The prefix for a command that needs root; None if this user cannot get root rights."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None
