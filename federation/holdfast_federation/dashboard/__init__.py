"""One page that shows the fleet, read-only and without scripts."""
