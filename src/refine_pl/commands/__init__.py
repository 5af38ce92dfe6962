"""The subcommands of ``refine-pl``, one file each, and what they share."""
