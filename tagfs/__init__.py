"""tagfs: the tag lists of container images, kept compressed and shown as plain files.

The reading order of the package is its import order; `docs/architecture.md` has the table.
"""

__version__ = "0.1.0"
