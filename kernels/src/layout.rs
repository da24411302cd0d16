//! Where elements lie: strides in elements, never in bytes.

/// `outer x inner` vectors of `len` contiguous elements each; vector `(o, i)` starts at `o * outer_stride + i * inner_stride`.
///
/// One description for `[tokens, hidden]`, for `[tokens, heads, head_dim]` and for a slice of a fused buffer of either.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rows {
    /// Slow index, mostly tokens.
    pub outer: usize,
    /// Fast index, mostly heads (1 for plain rows).
    pub inner: usize,
    /// Contiguous elements of a vector.
    pub len: usize,
    /// Elements from one outer index to the next; 0 broadcasts (operands that are read).
    pub outer_stride: usize,
    /// Elements from one inner index to the next.
    pub inner_stride: usize,
}

impl Rows {
    /// `rows` dense vectors of `len` elements.
    pub const fn dense(rows: usize, len: usize) -> Self {
        Rows { outer: rows, inner: 1, len, outer_stride: len, inner_stride: len }
    }

    /// A dense `[outer, inner, len]` tensor.
    pub const fn grid(outer: usize, inner: usize, len: usize) -> Self {
        Rows { outer, inner, len, outer_stride: inner.wrapping_mul(len), inner_stride: len }
    }

    /// The same vectors with another distance between outer indices: a slice of a wider buffer.
    pub const fn with_outer_stride(mut self, stride: usize) -> Self {
        self.outer_stride = stride;
        self
    }

    /// Number of vectors; `None` when it overflows.
    pub fn count(&self) -> Option<usize> {
        self.outer.checked_mul(self.inner)
    }

    /// Number of elements, without gaps; `None` when it overflows.
    pub fn elements(&self) -> Option<usize> {
        self.count()?.checked_mul(self.len)
    }

    /// Elements from the first to the last that is touched, inclusive; `None` when it overflows.
    pub fn extent(&self) -> Option<usize> {
        if self.outer == 0 || self.inner == 0 || self.len == 0 {
            return Some(0);
        }
        let outer = (self.outer - 1).checked_mul(self.outer_stride)?;
        let inner = (self.inner - 1).checked_mul(self.inner_stride)?;
        outer.checked_add(inner)?.checked_add(self.len)
    }

    /// First element of vector `(outer, inner)`.
    pub fn start(&self, outer: usize, inner: usize) -> usize {
        outer * self.outer_stride + inner * self.inner_stride
    }

    /// First element of the `index`-th vector, counting inner first.
    pub fn start_of(&self, index: usize) -> usize {
        self.start(index / self.inner, index % self.inner)
    }

    /// Whether no two vectors share an element: what a written operand needs.
    pub fn is_disjoint(&self) -> bool {
        let inner_ok = self.inner <= 1 || self.inner_stride >= self.len;
        let outer_ok = self.outer <= 1
            || self
                .inner
                .saturating_sub(1)
                .checked_mul(self.inner_stride)
                .and_then(|span| span.checked_add(self.len))
                .is_some_and(|span| self.outer_stride >= span)
            // heads outside tokens, as in [heads, tokens, head_dim]
            || (self.outer_stride >= self.len
                && self.inner > 1
                && (self.outer - 1)
                    .checked_mul(self.outer_stride)
                    .and_then(|span| span.checked_add(self.len))
                    .is_some_and(|span| self.inner_stride >= span));
        self.elements() == Some(0) || (inner_ok && outer_ok)
    }

    /// Whether the vectors lie one after the other without gaps.
    pub fn is_dense(&self) -> bool {
        (self.inner <= 1 || self.inner_stride == self.len)
            && (self.outer <= 1 || self.outer_stride == self.inner * self.len)
    }
}

/// Views of equal shapes with as few dimensions as all of them allow: dense ones become a single vector.
pub fn collapse<const N: usize>(mut views: [Rows; N]) -> [Rows; N] {
    if views.iter().all(|r| r.inner > 1 && r.inner_stride == r.len) {
        for r in &mut views {
            *r = Rows { len: r.inner * r.len, inner: 1, inner_stride: r.inner * r.len, ..*r };
        }
    }
    if views.iter().all(|r| r.inner == 1 && r.outer > 1 && r.outer_stride == r.len) {
        for r in &mut views {
            *r = Rows::dense(1, r.outer * r.len);
        }
    }
    views
}

/// Strides of a matrix operand, batched; the number of rows and columns belongs to the op.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Matrix {
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub col: usize,
    /// Elements from one matrix of a batch to the next; 0 shares the matrix (operands that are read).
    pub batch: usize,
}

impl Matrix {
    /// Dense, rows of `cols` contiguous elements.
    pub const fn row_major(rows: usize, cols: usize) -> Self {
        Matrix { row: cols, col: 1, batch: rows.wrapping_mul(cols) }
    }

    /// Dense, columns of `rows` contiguous elements.
    pub const fn col_major(rows: usize, cols: usize) -> Self {
        Matrix { row: 1, col: rows, batch: rows.wrapping_mul(cols) }
    }

    /// The transposed matrix over the same elements.
    pub const fn transposed(self) -> Self {
        Matrix { row: self.col, col: self.row, batch: self.batch }
    }

    /// Elements from the first to the last that is touched, inclusive; `None` when it overflows.
    pub fn extent(&self, batch: usize, rows: usize, cols: usize) -> Option<usize> {
        if batch == 0 || rows == 0 || cols == 0 {
            return Some(0);
        }
        let b = (batch - 1).checked_mul(self.batch)?;
        let r = (rows - 1).checked_mul(self.row)?;
        let c = (cols - 1).checked_mul(self.col)?;
        b.checked_add(r)?.checked_add(c)?.checked_add(1)
    }

    /// Index of element `(row, col)` of matrix `batch`.
    pub fn at(&self, batch: usize, row: usize, col: usize) -> usize {
        batch * self.batch + row * self.row + col * self.col
    }

    /// Whether no two elements coincide: what a written operand needs.
    pub fn is_disjoint(&self, batch: usize, rows: usize, cols: usize) -> bool {
        let mut dims = [(batch, self.batch), (rows, self.row), (cols, self.col)];
        if dims.iter().any(|d| d.0 == 0) {
            return true;
        }
        dims.sort_by_key(|d| d.1);
        let mut span = 1usize;
        for (count, stride) in dims {
            if count > 1 {
                if stride < span {
                    return false;
                }
                match (count - 1).checked_mul(stride).and_then(|s| s.checked_add(span)) {
                    Some(s) => span = s,
                    None => return false,
                }
            }
        }
        true
    }
}

/// A paged KV cache: blocks of `block` tokens, found through a block table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Paging {
    /// Tokens of a block.
    pub block: usize,
    /// Blocks that exist in the cache.
    pub blocks: usize,
}

/// Layout of the K (and, alike, the V) cache: `kv_heads x capacity` vectors of `head_dim` elements for each sequence.
///
/// Contiguous: `[batch, kv_heads, capacity, head_dim]` when dense. Paged: `[blocks, kv_heads, block, head_dim]`, and
/// `batch_stride` is the distance between blocks; `capacity` is then the largest number of tokens of one sequence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KvLayout {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Most tokens of one sequence.
    pub capacity: usize,
    /// Elements of one head's vector.
    pub head_dim: usize,
    /// Elements from one sequence (or block) to the next.
    pub batch_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Present when the cache is paged.
    pub paging: Option<Paging>,
}

impl KvLayout {
    /// A dense contiguous cache `[batch, kv_heads, capacity, head_dim]`.
    pub const fn contiguous(kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        let head_stride = capacity.wrapping_mul(head_dim);
        KvLayout {
            kv_heads,
            capacity,
            head_dim,
            batch_stride: kv_heads.wrapping_mul(head_stride),
            head_stride,
            token_stride: head_dim,
            paging: None,
        }
    }

    /// A dense token-major tensor `[batch, capacity, kv_heads, head_dim]`, as attention without a cache is often given.
    pub const fn token_major(kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        let token_stride = kv_heads.wrapping_mul(head_dim);
        KvLayout {
            kv_heads,
            capacity,
            head_dim,
            batch_stride: capacity.wrapping_mul(token_stride),
            head_stride: head_dim,
            token_stride,
            paging: None,
        }
    }

    /// A dense paged cache `[blocks, kv_heads, block, head_dim]`; a sequence holds up to `capacity` tokens.
    pub const fn paged(kv_heads: usize, capacity: usize, head_dim: usize, paging: Paging) -> Self {
        let head_stride = paging.block.wrapping_mul(head_dim);
        KvLayout {
            kv_heads,
            capacity,
            head_dim,
            batch_stride: kv_heads.wrapping_mul(head_stride),
            head_stride,
            token_stride: head_dim,
            paging: Some(paging),
        }
    }

    /// Blocks that one sequence's row of the block table holds (0 when contiguous).
    pub fn blocks_per_sequence(&self) -> usize {
        self.paging.map_or(0, |p| self.capacity.div_ceil(p.block.max(1)))
    }

    /// Elements from the first to the last of the whole cache, inclusive, for `batch` sequences; `None` when it overflows.
    pub fn extent(&self, batch: usize) -> Option<usize> {
        let (slow, tokens) = match self.paging {
            Some(p) => (p.blocks, p.block),
            None => (batch, self.capacity),
        };
        if slow == 0 || tokens == 0 || self.kv_heads == 0 || self.head_dim == 0 {
            return Some(0);
        }
        let s = (slow - 1).checked_mul(self.batch_stride)?;
        let h = (self.kv_heads - 1).checked_mul(self.head_stride)?;
        let t = (tokens - 1).checked_mul(self.token_stride)?;
        s.checked_add(h)?.checked_add(t)?.checked_add(self.head_dim)
    }

    /// First element of the vector of `token` in head `head` of `sequence`; `table` is that sequence's row of the block table
    /// (empty when contiguous).
    pub fn start(&self, sequence: usize, head: usize, token: usize, table: &[i32]) -> usize {
        let (slow, token) = match self.paging {
            Some(p) => (table[token / p.block] as usize, token % p.block),
            None => (sequence, token),
        };
        slow * self.batch_stride + head * self.head_stride + token * self.token_stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_views_become_one_vector() {
        let dense = Rows::grid(3, 5, 8);
        assert_eq!(collapse([dense, dense]), [Rows::dense(1, 120); 2]);
        let shared = Rows { outer_stride: 0, ..dense };
        assert_eq!(collapse([dense, shared])[0], Rows::dense(3, 40));
        let padded = dense.with_outer_stride(41);
        assert_eq!(collapse([dense, padded])[1], Rows::dense(3, 40).with_outer_stride(41));
        let swapped = Rows { outer: 3, inner: 5, len: 8, outer_stride: 8, inner_stride: 24 };
        assert_eq!(collapse([swapped]), [swapped]);
    }
}
