"""The embedded world: rendered people, their photographs, and the weights trained on them."""
