"""What a run takes, worked out without making it."""
