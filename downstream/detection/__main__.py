"""`python -m downstream.detection`, also under `accelerate launch -m` and `torchrun -m`."""

from downstream.detection.command import main

if __name__ == "__main__":
    raise SystemExit(main())
