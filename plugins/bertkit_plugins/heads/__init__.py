"""What labels mean."""
