"""Networks of the papers that the reference experiments build on."""
