//! The rows' bodies, one file an op.
