"""The bodies of the command line's verbs, one a file."""
