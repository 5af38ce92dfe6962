"""Next-sequence-prediction training of fast-weight language models, with forked states."""
