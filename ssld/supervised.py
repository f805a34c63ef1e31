"""`python -m ssld.supervised` under any launcher, and `ssld.supervised(...)`."""

from ssld.cli.python import callable_module
from ssld.cli.run import launch

if __name__ == "__main__":
    raise SystemExit(launch("supervised"))
callable_module(__name__)
