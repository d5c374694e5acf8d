"""One of the processes of a torchrun that never ends by itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    Path(sys.argv[1], f"begun-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
