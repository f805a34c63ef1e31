"""The `ssld` command."""

from ssld.cli.run import main

if __name__ == "__main__":
    raise SystemExit(main())
