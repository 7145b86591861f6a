"""What goes wrong: a module a family, with `CASES`, one or more for each rule."""
