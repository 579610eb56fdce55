"""Stage 1: videos in, per-frame feature stores that carry their GFLOPs out."""
