"""``python -m refine_pl`` is ``refine-pl``."""

import sys

from refine_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
