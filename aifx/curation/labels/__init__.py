"""Labels that people give to rows: their file, their page, agreement, and the formats of other programs."""
