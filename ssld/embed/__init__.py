"""What a network makes of images, as a table: `ssld embed`."""
