"""One file into train, validation and test files."""
