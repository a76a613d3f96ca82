"""Which devices exist: their keys, sites, certificates, revocation and last contact."""
