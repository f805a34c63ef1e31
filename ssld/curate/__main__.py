"""`accelerate launch -m ssld.curate`, `torchrun -m ssld.curate`, `python -m ssld.curate`."""

from ssld.curate.command import main

if __name__ == "__main__":
    raise SystemExit(main())
