"""`python -m downstream.segmentation`, also under `accelerate launch -m` and `torchrun -m`."""

from downstream.segmentation.command import main

if __name__ == "__main__":
    raise SystemExit(main())
