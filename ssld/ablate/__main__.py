"""`python -m ssld.ablate`."""

from ssld.ablate.command import main

if __name__ == "__main__":
    raise SystemExit(main())
