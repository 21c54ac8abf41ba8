"""Self-supervised methods, one a file: an encoder from images without labels."""
