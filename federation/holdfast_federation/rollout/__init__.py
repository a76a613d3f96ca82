"""Which device shall serve what: signed, numbered assignments of approved bundles."""
