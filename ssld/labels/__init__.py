"""What a teacher said of views, stored: the format, reading, checks, and the order of replaying."""
