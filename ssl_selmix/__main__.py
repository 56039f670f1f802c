"""`python -m ssl_selmix`: the command, where the folder of scripts is not on the path."""

import sys

from ssl_selmix.cli import main

if __name__ == "__main__":
    sys.argv[0] = "ssl-selmix"  # the name in usage lines
    sys.exit(main())
