"""What the machine has, read without torch; every probe takes a root path."""
