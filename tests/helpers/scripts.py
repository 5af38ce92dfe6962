"""A script in a process of its own, for trainings that start several processes."""

import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent


def run_script(file, source, *words, timeout_s=240):
    """Write ``source`` into ``file`` and run it with ``words``; it can import these helpers."""
    file.write_text(f"import sys\nsys.path.insert(0, {str(HELPERS)!r})\n{source}")
    command = [sys.executable, str(file), *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
