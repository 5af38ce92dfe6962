"""Set before anything imports torch: no network, and one thread for the small tensors of tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side; threads that wait for each other on busy processors are far slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
