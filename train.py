"""Train and fine-tune from a checkout: `python train.py --help`."""

import sys

from ssl_selmix.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    options = not words or words[0].startswith("-")  # else a command, or a setting
    raise SystemExit(main(["train", *words] if options else words))
