"""The version, a file of its own, so that reports and exports need not import the whole face."""

__version__ = "0.1.0"
