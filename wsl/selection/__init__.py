"""The best K images of every class: the selection, what it reads and what it writes."""
