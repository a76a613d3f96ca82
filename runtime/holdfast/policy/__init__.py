"""What the site allows: the rules, their signature, and the answers that follow from them. Pure; no IO."""
