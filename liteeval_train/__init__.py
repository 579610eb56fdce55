"""Stage 2: feature stores in, trained models with tables and figures out."""
