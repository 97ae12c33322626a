"""``python -m inheritune_lit`` is the ``inheritune`` command."""

import sys

from inheritune_lit.cli import main

if __name__ == "__main__":
    sys.exit(main())
