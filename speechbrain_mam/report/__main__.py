"""``python -m speechbrain_mam.report``."""

import sys

from speechbrain_mam.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
