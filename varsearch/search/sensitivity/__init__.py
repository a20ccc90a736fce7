"""What each setting of a model loses and saves on its own."""
