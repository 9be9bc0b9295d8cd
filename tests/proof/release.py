"""SpeechBrain's recipes, unmodified, from its source distribution on PyPI, which has no YAMLs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

RELEASE = "speechbrain==1.1.0"  # the newest whose source distribution holds the recipes
SHA256 = "669ed0903c2aebc0d5daffc69fdbbfc822e1e2c094be45c8160ceecc9c763cd3"
CORPORA = "AISHELL-1|CommonVoice|IEMOCAP|LibriSpeech|SLURP|TIMIT"
NEEDED = re.compile(rf"/(recipes/({CORPORA})/.*\.py)$")
OFFLINE = re.compile(r"connection broken|ConnectionError|timed out|Name or service not known")


class Unreachable(Exception):
    """PyPI cannot be asked; the message says how it failed."""


def unpack(tree: Path) -> None:
    """Put the recipes' scripts into a new folder.

    The archive is kept in the folder that ``SPEECHBRAIN_MAM_CACHE`` names, or else beside them.
    """
    tree.mkdir()
    cache = Path(os.environ.get("SPEECHBRAIN_MAM_CACHE", tree))
    archive = cache / f"{RELEASE.replace('==', '-')}.tar.gz"
    if not archive.exists():
        download(archive, tree / "requirements.txt")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256, f"{archive}: other content"
    with tarfile.open(archive) as tar:
        for member in tar:
            if name := NEEDED.search(member.name):
                target = tree / name[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def download(archive: Path, pinned: Path) -> None:
    pinned.write_text(f"{RELEASE} --hash=sha256:{SHA256}\n")
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--retries", "1")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-d", archive.parent, "-r", pinned],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    if done.returncode and OFFLINE.search(said):
        raise Unreachable(f"PyPI cannot be reached for {RELEASE}: {said.splitlines()[-1]}")
    assert done.returncode == 0, said
