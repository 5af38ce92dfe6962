"""Triton kernels in Triton's interpreter, on the CPU.

The interpreter must be chosen before triton is imported, so it belongs in a process of its own,
which ``run`` starts. 16 bits are of no use there: products of bfloat16 come out wrong.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def run(script, *arguments, interpret=True):
    """What ``script`` prints as JSON in its last line."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    chosen = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}
    if interpret:
        chosen["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def patch_the_language_once():
    """The interpreter does so at every call inside a kernel, which takes most of its time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    class Kept:
        def restore(self):
            """Nothing else runs in this process."""

    def patch_once(function):
        seen = function.__globals__.values()
        languages = tuple(any(value is lang for value in seen) for lang in (tl, tl.core))
        if languages not in patched:
            patch(function)
            patched.add(languages)
            # NumPy 2.4 makes no number of an array of one, as which Triton 3.6 holds loops' bounds.
            tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        return Kept()

    interpreter._patch_lang = patch_once
