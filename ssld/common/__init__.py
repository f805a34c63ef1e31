"""What every folder may use and what knows nothing of images: files, settings, streams, errors."""
