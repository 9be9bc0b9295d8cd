"""An exported folder on the Hugging Face Hub: private unless asked otherwise, in one commit.

The token is that of the environment variable ``HF_TOKEN``. It is handed to ``huggingface_hub``, and
no message holds it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError
from speechbrain_mam.version import __version__

TOKEN = "HF_TOKEN"
OF_THE_HUB = {".gitattributes", "README.md"}
"""Files that a new repository has by itself."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", flags=re.ASCII)


def check_push(name: str) -> str:
    """The token, before any work: whether an upload can be tried at all.

    Raises
    ------
    MAMError
        If there is no token, or the name is none of a repository.

    Example
    -------
    >>> check_push("hubert-mam")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: --push: expected OWNER/NAME, found 'hubert-mam'
    """
    if not NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise MAMError(f"--push: expected OWNER/NAME, found {name!r}")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise MAMError(
            f"--push: the environment variable {TOKEN} is not set; expected a token of the Hub "
            "that may write"
        )
    return token


def push_folder(folder: Path, name: str, public: bool = False, force: bool = False) -> str:
    """Upload a folder as a model of the Hub.

    Arguments
    ---------
    folder : Path
        What :func:`~speechbrain_mam.export.write.export_run` has written.
    name : str
        ``OWNER/NAME``.
    public : bool
        Whether a new repository is public, and one that is public is written to.
    force : bool
        Whether the files of one that has some are replaced, all of them.

    Returns
    -------
    str
        Where it is.

    Raises
    ------
    MAMError
        If the Hub is not reached or refuses it, or the repository is another one than was asked
        for. The folder stays as it is, and so does what the repository holds.
    """
    token = check_push(name)
    # It takes its time to load, and only this needs it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        try:
            found = api.model_info(name)
        except RepositoryNotFoundError:
            found = None
        if found is None:
            api.create_repo(name, private=not public)
        else:
            _check_found(found, name, public, force)
        with _bars_on_a_terminal():
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=f"Export of speechbrain_mam {__version__}",
                delete_patterns=None if found is None else "*",  # what is not of this export
            )
    except MAMError:
        raise
    except Exception as error:  # of whatever carries it: httpx, the Hub's own, the system's
        reason = " ".join(str(error).split()).replace(token, "…") or type(error).__name__
        raise MAMError(
            f"'{folder}' is written, but '{name}' on {api.endpoint} is not: {reason}"
        ) from error.with_traceback(None)
    return f"{api.endpoint}/{name}"


@contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """Progress bars are for eyes; what else reads stderr expects one line, of an error."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _check_found(found: Any, name: str, public: bool, force: bool) -> None:
    files = {one.rfilename for one in found.siblings or ()} - OF_THE_HUB
    if files and not force:
        raise MAMError(f"--push: '{name}' is there and holds {min(files)!r}; --force replaces it")
    if not found.private and not public:
        raise MAMError(f"--push: '{name}' is public; --public uploads to it all the same")
