"""The evidence file: what a coordinator's log holds, in one canonical file that anybody can check offline."""
