"""For training loops of other libraries. Each file needs its library, and is imported by its own name."""
