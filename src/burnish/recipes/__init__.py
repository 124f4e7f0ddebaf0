"""Ready recipes and the data of our own that they use."""
