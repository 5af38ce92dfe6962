"""Reports of runs: read what runs left behind, lay it side by side, write HTML, Markdown and PNG.

``reading`` knows folders; the sections make blocks of what was read; ``html`` and ``markdown`` turn
the same blocks into pages. Nothing here trains or imports Lightning.
"""
