"""The dashboard's pages, one file for each place in its navigation."""
