//! Products whose operands are larger than a binding: windows of matrices, rows and columns, a dispatch each.

use super::form::Form;
use super::tiles::TILE;
use crate::device::WebGpuCaps;
use perjoule_kernels::DType;
use std::ops::Range;

/// A part of a product: matrices (of the batch, or experts), rows of A and C, columns of B and C.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) matrices: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) cols: Range<usize>,
}

impl Window {
    /// All of a product.
    pub(crate) fn whole(form: &Form) -> Self {
        Window { matrices: 0..form.matrices, rows: 0..form.m, cols: 0..form.n }
    }
}

/// Of an operand: strides in elements by which it follows matrices, rows and columns of C (0: it does not), and the elements from the
/// first to the last of what belongs to one of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) operand: usize,
    pub(super) dtype: DType,
    pub(super) batch: usize,
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) len: usize,
}

/// Windows are made of so many matrices, rows and columns: sixteen of anything keep operands at multiples of 16 bytes.
const STEPS: [usize; 3] = [1, 16, 16];

impl Extents {
    pub(super) fn of(dtype: DType) -> Self {
        Extents { operand: 0, dtype, batch: 0, row: 0, col: 0, len: 1 }
    }

    fn strides(&self) -> [usize; 3] {
        [self.batch, self.row, self.col]
    }

    /// Elements from the first to the last, for so many of each. Saturates.
    fn span(&self, counts: [usize; 3]) -> usize {
        if self.len == 0 || counts.contains(&0) {
            return 0;
        }
        let each = self.strides().into_iter().zip(counts).map(|(s, count)| s.saturating_mul(count - 1));
        each.fold(self.len, usize::saturating_add)
    }

    fn bytes(&self, elements: usize) -> u64 {
        self.dtype.bytes(elements).unwrap_or(u64::MAX)
    }

    /// Where the operand's part of a window begins, and how long it is, in bytes.
    pub(super) fn part(&self, window: &Window) -> (u64, u64) {
        let ranges = [&window.matrices, &window.rows, &window.cols];
        let at: usize = self.strides().iter().zip(ranges).map(|(stride, range)| stride * range.start).sum();
        let counts = ranges.map(ExactSizeIterator::len);
        (self.bytes(at), self.bytes(self.span(counts)))
    }

    /// Makes `counts` as small as the operand needs to fit `most` bytes. Gives whether it does.
    fn shrink(&self, counts: &mut [usize; 3], most: u64) -> bool {
        let strides = self.strides();
        let mut order = [0, 1, 2];
        order.sort_by_key(|&d| std::cmp::Reverse(strides[d]));
        // elements that fit, whole blocks of them
        let room = usize::try_from(most / self.dtype.block_bytes() as u64).unwrap_or(usize::MAX);
        let room = room.saturating_mul(self.dtype.block_len());
        for d in order {
            if self.span(*counts) <= room {
                return true;
            }
            if strides[d] == 0 || counts[d] <= STEPS[d] {
                continue;
            }
            let mut one = *counts;
            one[d] = 1;
            let fitting = room.checked_sub(self.span(one)).map_or(0, |rest| rest / strides[d] + 1);
            let fitting = (fitting / STEPS[d] * STEPS[d]).max(STEPS[d]);
            // parts of about the same size
            let parts = counts[d].div_ceil(fitting);
            counts[d] = counts[d].div_ceil(parts).next_multiple_of(STEPS[d]);
        }
        self.span(*counts) <= room
    }
}

/// Most bytes of an operand that a kernel binds: offsets within bindings are added.
pub(crate) fn most_bound(caps: &WebGpuCaps) -> u64 {
    caps.limits.max_storage_buffer_binding_size.min(u64::from(u32::MAX)).saturating_sub(512)
}

/// Makes `counts` as small as it takes for `most` multiplications, by whole tiles. Rows of a grouped product belong to experts, of which one may
/// have all of them: there only columns are cut.
fn limit_work(form: &Form, counts: &mut [usize; 3], most: f64) {
    let sides = 1 + usize::from(form.up.is_some());
    for (d, tile) in [(2, TILE), (1, TILE), (0, 1)] {
        if form.grouped.is_some() && d != 2 {
            continue;
        }
        let rows =
            if form.grouped.is_some() { [1, form.rows() * form.matrices] } else { [counts[0], counts[1]] };
        let work: f64 = [rows[0], rows[1], counts[2], form.k, sides].iter().map(|&n| n as f64).product();
        let parts = (work / most).ceil().min(counts[d].div_ceil(tile) as f64).max(1.0) as usize;
        if parts > 1 {
            counts[d] = counts[d].div_ceil(parts).next_multiple_of(tile);
        }
    }
}

/// The windows in which every operand fits `most` bytes, in order. `None` where there are none.
pub(crate) fn windows(form: &Form, most: u64) -> Option<Vec<Window>> {
    windows_of_work(form, most, f64::INFINITY)
}

/// The same with no more than about so many multiplications each.
pub(super) fn windows_of_work(form: &Form, most: u64, work: f64) -> Option<Vec<Window>> {
    let totals = [form.matrices, form.m, form.n];
    let mut counts = totals;
    if form.extents().iter().any(|extents| !extents.shrink(&mut counts, most)) {
        return None;
    }
    limit_work(form, &mut counts, work);
    let pieces = |total: usize, count: usize| {
        let count = count.max(1);
        // nothing to compute is one window, too
        (0..total.div_ceil(count).max(1)).map(move |i| i * count..((i + 1) * count).min(total))
    };
    let mut list = Vec::new();
    for matrices in pieces(totals[0], counts[0]) {
        for rows in pieces(totals[1], counts[1]) {
            list.extend(pieces(totals[2], counts[2]).map(|cols| Window {
                matrices: matrices.clone(),
                rows: rows.clone(),
                cols,
            }));
        }
    }
    Some(list)
}
