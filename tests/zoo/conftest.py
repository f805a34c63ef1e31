"""A hub on loopback, a release and a token for the tests of the zoo."""

from hub_server import hub, release, token  # noqa: F401
