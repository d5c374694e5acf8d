"""A program of its own that ends with 77 at its first attempt to reach the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .processes import run

ROOT = Path(__file__).parents[2]

NO_NETWORK = """
import os, sys

REFUSED = {"connect", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo", "sendto", "sendmsg"}

def refuse(event, arguments):
    if event.startswith("socket.") and event.removeprefix("socket.") in REFUSED:
        os.write(2, f"network: {event} {arguments}".encode())
        os._exit(77)

sys.addaudithook(refuse)
"""


def without_network(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a folder; its exit status is 77 where it asked for the network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", NO_NETWORK + code]
    return run(command, cwd=folder, env=environment)
