"""`ssld methods`: ways to learn from unlabeled images, held against each other."""
