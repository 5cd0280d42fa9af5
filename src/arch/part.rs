//! Sites that a family stores together: which rows of a fused tensor belong to which site.
//!
//! ```text
//!   stacked            per head (length = head_dim, every = 3 head_dim)
//!   ┌───────┐          ┌───┐ q of head 0
//!   │ q     │          ├───┤ k of head 0
//!   ├───────┤          ├───┤ v of head 0
//!   │ k     │          ├───┤ q of head 1
//!   ├───────┤          ├───┤ …
//!   │ v     │
//!   └───────┘
//! ```
//!
//! A fused tensor is carried whole while all its parts are dense. Once a part is stored as factors
//! the tensor is dissolved: every part has tensors of its own, and `config.json` declares them all.

use std::ops::Range;

/// A site's place in the tensors of a module that holds several sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The module: its tensors are `X.weight [total, in]` and, with biases, `X.bias [total]`.
    pub module: String,
    /// The site's rows of both.
    pub rows: Rows,
    /// Rows of the module's tensors.
    pub total: usize,
    /// Whether the checkpoint holds the module's tensors; otherwise they were dissolved.
    pub fused: bool,
}

/// Rows at equal distances: `count` blocks of `length` rows, one `every` so many, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first row.
    pub first: usize,
    /// Rows that stand together.
    pub length: usize,
    /// From the start of one block to that of the next.
    pub every: usize,
    /// Blocks.
    pub count: usize,
}

impl Rows {
    /// Rows that all stand together.
    pub fn range(first: usize, length: usize) -> Self {
        Self { first, length, every: length, count: 1 }
    }

    /// Where the blocks lie in a tensor of rows of `width` elements or bytes, in order.
    pub fn blocks(&self, width: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { first, length, every, count } = *self;
        (0..count).map(move |block| {
            let start = first + block * every;
            start * width..(start + length) * width
        })
    }

    /// The row of the whole that is row `row` of the part.
    pub fn locate(&self, row: usize) -> usize {
        self.first + row / self.length * self.every + row % self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_all_heads_cover_every_row_once() {
        let (heads, head_dim) = (3, 5);
        let part =
            |i: usize| Rows { first: i * head_dim, length: head_dim, every: 15, count: heads };
        let mut owner = vec![None; 3 * heads * head_dim];
        for i in 0..3 {
            let rows: Vec<usize> = part(i).blocks(1).flatten().collect();
            for (at, &row) in rows.iter().enumerate() {
                assert_eq!(part(i).locate(at), row);
                assert_eq!(owner[row].replace(i), None, "row {row} has two owners");
                assert_eq!(row / head_dim % 3, i);
            }
        }
        assert!(owner.iter().all(Option::is_some));
        let mut bytes = Rows::range(2, 3).blocks(4);
        assert_eq!((bytes.next(), bytes.next()), (Some(8..20), None));
    }
}
