//! The last minutes of a figure, for a graph.

use std::collections::VecDeque;

/// Points that are kept: five minutes at one a second.
const KEPT: usize = 300;

/// A figure over time; `None` where it was not known.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct History {
    points: VecDeque<Option<f64>>,
    /// Points that were ever added.
    added: usize,
}

impl History {
    /// Adds a point, and forgets the oldest of too many.
    pub(crate) fn push(&mut self, value: Option<f64>) {
        if self.points.len() == KEPT {
            self.points.pop_front();
        }
        self.points.push_back(value.filter(|value| value.is_finite()));
        self.added += 1;
    }

    /// Whether any point is known.
    pub(crate) fn is_known(&self) -> bool {
        self.points.iter().any(Option::is_some)
    }

    /// Highest known value.
    pub(crate) fn peak(&self) -> Option<f64> {
        self.points.iter().flatten().copied().reduce(f64::max)
    }

    /// Number of points that a column of a graph of `width` columns stands for.
    pub(crate) fn points_per_column(&self, width: usize) -> usize {
        self.points.len().div_ceil(width.max(1)).max(1)
    }

    /// At most `width` columns, the newest last, each the mean of the points that it stands for. Columns keep their points from one call to
    /// the next, so that a graph moves and does not flicker.
    pub(crate) fn columns(&self, width: usize) -> Vec<Option<f64>> {
        let each = self.points_per_column(width);
        let first = self.added - self.points.len();
        let mut columns: Vec<(f64, u32)> = Vec::new();
        let mut last = None;
        for (i, point) in self.points.iter().enumerate() {
            let column = (first + i) / each;
            if last.replace(column) != Some(column) {
                columns.push((0.0, 0));
            }
            if let (Some(value), Some((sum, count))) = (point, columns.last_mut()) {
                (*sum, *count) = (*sum + value, *count + 1);
            }
        }
        let extra = columns.len().saturating_sub(width);
        let mean = |(sum, count): (f64, u32)| (count > 0).then(|| sum / f64::from(count));
        columns.into_iter().skip(extra).map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_points_are_last_and_unknown_ones_stay_so() {
        let mut history = History::default();
        assert!(history.columns(10).is_empty() && !history.is_known());
        for value in [Some(1.0), None, Some(f64::NAN), Some(3.0)] {
            history.push(value);
        }
        assert_eq!(history.columns(10), [Some(1.0), None, None, Some(3.0)]);
        assert_eq!((history.peak(), history.is_known()), (Some(3.0), true));
    }

    #[test]
    fn long_histories_are_averaged_into_columns_that_do_not_flicker() {
        let mut history = History::default();
        (0..1000).for_each(|i| history.push(Some(f64::from(i))));
        let before = history.columns(100);
        assert_eq!((history.points.len(), before.len()), (KEPT, 100));
        assert_eq!(history.points_per_column(100), 3);
        history.push(Some(1000.0));
        let after = history.columns(100);
        // whole columns moved, or only the last one changed
        let moved = before[1..99].iter().filter(|column| after.contains(column)).count();
        assert!(moved >= 97, "{moved}");
        for width in [0, 1, 7] {
            assert!(history.columns(width).len() <= width, "{width}");
        }
    }
}
