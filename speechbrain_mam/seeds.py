"""``python -m speechbrain_mam.seeds``: see :mod:`speechbrain_mam.runs.seeds`."""

from speechbrain_mam.runs.seeds import main as main

if __name__ == "__main__":
    main()
