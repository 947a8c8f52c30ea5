"""The story of each noun; the only room that opens transactions."""
