"""Does it learn, and if not why: metrics, verdict, causes, teacher check, evaluation."""
