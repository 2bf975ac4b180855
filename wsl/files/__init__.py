"""Files: which ones a name means, tables and objects read, results published whole."""
