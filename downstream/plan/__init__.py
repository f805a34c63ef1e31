"""What a detector, a segmenter or a transfer will take, before it is begun."""
