"""Making bundles: pack a trained model, measure its reference profile, derive a candidate from new weights."""
