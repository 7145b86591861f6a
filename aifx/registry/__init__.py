"""Models by name: their versions, what each alias means, who decided it and on what evidence."""
