//! The rows' bodies, one file an op.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod attention_block;
mod attention_few;
pub(crate) mod attention_simple;
pub(crate) mod body;
pub(crate) mod cast;
pub(crate) mod embed;
pub(crate) mod fused;
pub(crate) mod gated;
pub(crate) mod grouped;
pub(crate) mod kv;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod run;
pub(crate) mod sample;
pub(crate) mod softmax;
