"""One process of `topk run`: launched, activated, watched, and ended."""
