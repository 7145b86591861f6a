"""From raw files to immutable, explained versions of data sets. training reads them by `aifx.data.versions`."""
