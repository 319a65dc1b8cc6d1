"""One file per rival of the paper's tables, plus the plain ones. A baseline never imports another baseline."""
