"""From a configuration, a task and a layout to compiled programs."""
