"""Nothing is downloaded, whatever a library would like to ask for."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
