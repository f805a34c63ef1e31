"""From words on a command line to a configuration and a command's work."""
