"""``doctor``: what is installed, what is there, and what would fail."""

from __future__ import annotations

import argparse
import sys

from speechbrain_mam.cli.parser import Verbs, add_json, add_verb

DOCTOR_HELP = "say which versions, models and corpora are here, and what would fail offline"
DOCTOR_EXAMPLES = """\
Nothing is downloaded and nothing written but the mini corpora's cache folder tried. Exit code 0 if
every default recipe can run without a network, else 2, with the first reason on stderr.

examples:
  speechbrain-mam doctor
  speechbrain-mam doctor --json
"""


def add_verbs(verbs: Verbs) -> None:
    """``doctor``."""
    doctor = add_verb(verbs, "doctor", doctor_command, DOCTOR_HELP, DOCTOR_EXAMPLES)
    add_json(doctor)


def doctor_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam doctor``: print the findings; an error if a default recipe cannot run."""
    from speechbrain_mam.cli.doctor import examine

    found = examine()
    sys.stdout.write(f"{found.to_json() if options.json else found}\n")
    sys.stdout.flush()
    found.check()
