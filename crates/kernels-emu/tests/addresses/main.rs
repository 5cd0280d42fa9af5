//! Every kernel on tensors of more than 2^32 elements: only the last blocks of the grid run, and
//! have to write the same bits as on a small tensor that holds what is at the end of the large one.
//!
//! The tensors are address space without memory but for the touched pages. Left out is
//! low_rank_matvec, whose blocks take their place in the order in which they start: to reach the
//! last ones all have to run.
mod attention;
#[path = "../common/mod.rs"]
mod common;
mod elementwise;
mod moments;
mod rows;
mod stack;
mod tensor;
