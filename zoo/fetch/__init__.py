"""What servers may do to a download."""
