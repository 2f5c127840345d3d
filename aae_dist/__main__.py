"""`python -m aae_dist`: the command line, where the script `aae-dist` is not on the path."""

import sys

from aae_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
