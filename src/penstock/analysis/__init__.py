"""What a model is made of and what it costs, read off the file without running it."""
