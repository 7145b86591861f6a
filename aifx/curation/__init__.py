"""From raw files to immutable, explained versions of data sets. `aifx.data.versions` reads them."""
