"""The owner of the data: makes the site's key, and signs the policy that the site's devices obey."""
