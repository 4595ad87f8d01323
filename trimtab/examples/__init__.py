"""The examples that come with trimtab, by their names on the command line: `trimtab fit digits`."""
