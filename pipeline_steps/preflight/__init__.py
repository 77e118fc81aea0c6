"""What a study needs before it starts, and what it will cost."""
