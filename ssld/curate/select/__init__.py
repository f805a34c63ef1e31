"""What the teacher says of each image, and the k best of each class."""
