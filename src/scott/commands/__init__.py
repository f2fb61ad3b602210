"""One file a command of the command line, and what several of them share."""
