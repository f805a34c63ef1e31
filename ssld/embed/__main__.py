"""`python -m ssld.embed`."""

from ssld.cli.run import launch

if __name__ == "__main__":
    raise SystemExit(launch("embed"))
