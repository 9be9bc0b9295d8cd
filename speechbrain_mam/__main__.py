"""``python -m speechbrain_mam`` is ``speechbrain-mam``."""

from __future__ import annotations

import sys

from speechbrain_mam.cli import main

if __name__ == "__main__":
    sys.exit(main())
