"""One file per payment provider, behind one seam."""
