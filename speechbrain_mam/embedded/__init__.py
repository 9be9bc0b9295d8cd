"""The models and corpora behind the package's defaults, as files, and what finds and expands them.

The scripts that made them stand in ``tools/embedded``. It imports nothing of the package.
"""
