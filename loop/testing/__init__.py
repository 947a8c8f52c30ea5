"""The public kit for plug-in authors: contract suite and stub processors."""
