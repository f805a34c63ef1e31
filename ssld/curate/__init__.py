"""Curation: a gallery of unlabeled images -> a leak-proof, teacher-filtered manifest.

`command.py` is the way through the stages; each stage is a file of its own name.
"""

from ssld.cli.python import callable_module

callable_module(__name__)
