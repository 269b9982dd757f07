"""What is to be made, by which engine, and making it."""
