error: no aifx.toml in /work/h6 or above it
  this command works inside a project
hint: aifx init my-project
