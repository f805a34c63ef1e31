"""`python -m ssld.evaluate` under any launcher, and `ssld.evaluate(...)`."""

from ssld.cli.python import callable_module
from ssld.cli.run import launch

if __name__ == "__main__":
    raise SystemExit(launch("evaluate"))
callable_module(__name__)
