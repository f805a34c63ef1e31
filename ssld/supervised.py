"""`python -m ssld.supervised`, and the same under `accelerate launch` and `torchrun`; `ssld.supervised(...)`."""

from ssld.cli.python import callable_module
from ssld.cli.run import launch

if __name__ == "__main__":
    raise SystemExit(launch("supervised"))
callable_module(__name__)
