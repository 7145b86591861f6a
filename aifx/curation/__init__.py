"""Steps from raw files to immutable, explained versions of data sets, which training reads by `aifx.data.versions`."""
