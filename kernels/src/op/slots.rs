//! Slots as untrusted numbers: whatever a caller put there, what follows stays within the operands. References, kernels and checks all
//! read slots through these, so that they agree on nonsense, too.

use crate::layout::KvLayout;
use std::ops::Range;

/// Query rows of sequence `b`: `q_len` of them, or as `offsets` says, at most `q_len`. Ranges of different sequences do not overlap,
/// and end at `tokens`: offsets that go down count as if they stayed.
#[inline]
pub fn query_rows(b: usize, q_len: usize, tokens: usize, offsets: Option<&[i32]>) -> Range<usize> {
    let Some(offsets) = offsets else { return b * q_len..(b + 1) * q_len };
    let highest = offsets[..=b].iter().fold(0, |most, &o| most.max(o));
    let start = (highest as usize).min(tokens);
    let end = (highest.max(offsets[b + 1]) as usize).min(tokens);
    start..end.min(start.saturating_add(q_len))
}

/// The query rows of all sequences in order, each as [`query_rows`] gives them, at the cost of one. Endless without offsets.
pub struct QueryRows<'a> {
    q_len: usize,
    tokens: usize,
    offsets: Option<&'a [i32]>,
    sequence: usize,
    /// The highest offset so far.
    highest: i32,
}

impl<'a> QueryRows<'a> {
    /// Those of as many sequences as there are offsets, less one.
    pub fn new(q_len: usize, tokens: usize, offsets: Option<&'a [i32]>) -> Self {
        QueryRows { q_len, tokens, offsets, sequence: 0, highest: 0 }
    }
}

impl Iterator for QueryRows<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let b = self.sequence;
        let Some(offsets) = self.offsets else {
            self.sequence += 1;
            return Some(query_rows(b, self.q_len, self.tokens, None));
        };
        let &[from, to] = offsets.get(b..b + 2)? else { return None };
        self.sequence += 1;
        self.highest = self.highest.max(from);
        // the last two offsets with the highest before them stand for all
        Some(query_rows(0, self.q_len, self.tokens, Some(&[self.highest, to])))
    }
}

/// Keys of a sequence: at most `capacity`, and none for lengths below 0.
#[inline]
pub fn length(kv_len: i32, capacity: usize) -> usize {
    usize::try_from(kv_len).unwrap_or(0).min(capacity)
}

/// First element of `token`'s vector in head 0 of `sequence`; `table` holds the block table of all sequences when the cache is paged.
/// `None` where the table names no block of the cache. The token is below the capacity.
#[inline]
pub fn vector(kv: &KvLayout, sequence: usize, token: usize, table: &[i32]) -> Option<usize> {
    let Some(paging) = kv.paging else { return Some(kv.start(sequence, 0, token, &[])) };
    let block = table[sequence * kv.blocks_per_sequence() + token / paging.block];
    let exists = usize::try_from(block).is_ok_and(|b| b < paging.blocks);
    exists.then(|| kv.start(0, 0, token % paging.block, &[block]))
}

/// The experts that have positions, with those: disjoint ranges within `0..rows`, ascending; offsets that go down count as if they
/// stayed.
pub struct Segments<'a> {
    offsets: &'a [i32],
    rows: usize,
    expert: usize,
    end: usize,
}

impl<'a> Segments<'a> {
    /// Those of `offsets` among `rows` positions.
    pub fn new(offsets: &'a [i32], rows: usize) -> Self {
        Segments { offsets, rows, expert: 0, end: 0 }
    }
}

impl Iterator for Segments<'_> {
    type Item = (usize, Range<usize>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while let Some(&[from, to]) = self.offsets.get(self.expert..self.expert + 2) {
            let expert = self.expert;
            self.expert += 1;
            let from = usize::try_from(from).unwrap_or(0).clamp(self.end, self.rows);
            let to = usize::try_from(to).unwrap_or(0).clamp(from, self.rows);
            self.end = to;
            if from < to {
                return Some((expert, from..to));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Paging;

    #[test]
    fn offsets_of_any_kind_give_ranges_that_do_not_overlap() {
        let cases: [&[i32]; 5] =
            [&[0, 2, 2, 5], &[3, 1, 4, 2], &[-7, i32::MAX, 0, 9], &[i32::MIN; 4], &[9; 4]];
        for offsets in cases {
            let mut end = 0;
            let one_by_one: Vec<_> = (0..3).map(|b| query_rows(b, 3, 5, Some(offsets))).collect();
            assert_eq!(QueryRows::new(3, 5, Some(offsets)).collect::<Vec<_>>(), one_by_one, "{offsets:?}");
            for b in 0..3 {
                let rows = query_rows(b, 3, 5, Some(offsets));
                assert!(
                    rows.start >= end && rows.start <= rows.end && rows.end <= 5,
                    "{offsets:?} {b}: {rows:?}"
                );
                assert!(rows.len() <= 3);
                end = rows.end;
            }
        }
        let valid: Vec<_> = (0..3).map(|b| query_rows(b, 3, 5, Some(&[0, 2, 2, 5]))).collect();
        assert_eq!(valid, [0..2, 2..2, 2..5]);
        assert_eq!(query_rows(2, 3, 9, None), 6..9);
        assert_eq!(QueryRows::new(3, 9, None).take(3).collect::<Vec<_>>(), [0..3, 3..6, 6..9]);
        assert_eq!(QueryRows::new(3, 9, Some(&[])).next(), None);
        // as many as the offsets say
        assert_eq!(query_rows(1, usize::MAX, 9, Some(&[0, 2, 5])), 2..5);
    }

    #[test]
    fn segments_are_disjoint_and_inside() {
        let of = |offsets: &[i32]| Segments::new(offsets, 6).collect::<Vec<_>>();
        assert_eq!(of(&[0, 2, 2, 6]), [(0, 0..2), (2, 2..6)]);
        assert_eq!(of(&[3, 1, 5, 2]), [(1, 3..5)]);
        assert_eq!(of(&[0, 5, 2, 7]), [(0, 0..5), (2, 5..6)]);
        assert_eq!(of(&[i32::MIN, -1, i32::MAX, 0]), [(1, 0..6)]);
        assert_eq!(of(&[4]), []);
    }

    #[test]
    fn lengths_and_blocks_stay_inside() {
        assert_eq!([-1, 0, 7, 8, i32::MAX].map(|l| length(l, 7)), [0, 0, 7, 7, 7]);
        let kv = KvLayout::paged(2, 10, 4, Paging { block: 4, blocks: 3 });
        let table = [2, 0, 1, -1, 3, i32::MIN];
        assert_eq!(vector(&kv, 0, 5, &table), Some(4));
        assert_eq!(vector(&kv, 0, 3, &table), Some(2 * 32 + 12));
        assert_eq!([0, 4, 8].map(|t| vector(&kv, 1, t, &table)), [None; 3]);
        assert_eq!(vector(&KvLayout::contiguous(2, 10, 4), 1, 3, &[]), Some(80 + 12));
    }
}
