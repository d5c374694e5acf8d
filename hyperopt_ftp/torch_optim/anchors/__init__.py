"""Where anchors come from, and how they are identified."""
