"""`python -m ssld.labels build`, and the same under `accelerate launch` and `torchrun`."""

from ssld.cli.run import launch

if __name__ == "__main__":
    raise SystemExit(launch("labels"))
