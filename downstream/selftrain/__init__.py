"""Self-training: a teacher, its labels for unlabeled images, a student of both."""
