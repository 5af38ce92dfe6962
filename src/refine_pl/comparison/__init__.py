"""Arms of one start side by side: paired differences, the temperature control, a verdict."""
