"""A network scores images, and the selection is made of its scores."""
