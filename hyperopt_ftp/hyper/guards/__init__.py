"""What is refused: arguments that do not fit, and losses and updates whose derivative would be wrong."""
