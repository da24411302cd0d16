//! Collective operations of a group of devices, with the meanings that NCCL gives them.

use super::check::{bytes_of, ensure, product};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::{Error, Result};

const NAME: &str = "collective";

/// Which operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CollectiveKind {
    /// Every rank gets the sum over all ranks.
    AllReduce,
    /// Every rank gets the inputs of all ranks, in their order.
    AllGather,
    /// Rank `r` gets part `r` of the sum over all ranks.
    ReduceScatter,
    /// Every rank gets the input of one.
    Broadcast {
        /// That rank.
        root: usize,
    },
}

/// One operation of a group of `world` ranks; the group is given when it is prepared.
///
/// Operands: `x`, `out`, both dense and of one plain type. Of `count` elements each, but for `out` of [`CollectiveKind::AllGather`]
/// and `x` of [`CollectiveKind::ReduceScatter`], which have `world * count`.
///
/// A reference sees one rank's operands only: it computes what rank 0 gets when every rank holds the same `x`. For a group of one
/// that is a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Collective {
    /// Which operation.
    pub kind: CollectiveKind,
    /// Element type.
    pub dtype: DType,
    /// Elements: see above.
    pub count: usize,
    /// Ranks of the group, at least 1.
    pub world: usize,
}

impl Collective {
    fn lengths(&self) -> (Option<usize>, Option<usize>) {
        let (one, all) = (Some(self.count), self.count.checked_mul(self.world));
        match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::Broadcast { .. } => (one, one),
            CollectiveKind::AllGather => (one, all),
            CollectiveKind::ReduceScatter => (all, one),
        }
    }
}

impl Spec for Collective {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure(!self.dtype.is_block(), NAME, "dtype", self.dtype, "a plain type")?;
        ensure(self.world > 0, NAME, "world", 0, "at least 1")?;
        if let CollectiveKind::Broadcast { root } = self.kind {
            ensure(root < self.world, NAME, "root", root, "a rank below world")?;
        }
        match self.count.checked_mul(self.world) {
            Some(_) => Ok(()),
            None => Err(Error::Overflow { op: NAME, what: "count * world" }),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let (x, out) = self.lengths();
        vec![
            Operand::data("x", self.dtype, x, Access::Read),
            Operand::data("out", self.dtype, out, Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("count", self.count), ("world", self.world)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).variant("kind", &self.kind).finish()
    }

    fn flops(&self) -> u64 {
        match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::ReduceScatter => {
                product(&[self.world.saturating_sub(1), self.count])
            }
            CollectiveKind::AllGather | CollectiveKind::Broadcast { .. } => 0,
        }
    }

    fn bytes(&self) -> u64 {
        let (x, out) = self.lengths();
        let bytes = |count: Option<usize>| bytes_of(self.dtype, count.map_or(u64::MAX, |c| c as u64));
        bytes(x).saturating_add(bytes(out))
    }

    fn reduction(&self) -> usize {
        match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::ReduceScatter => self.world,
            CollectiveKind::AllGather | CollectiveKind::Broadcast { .. } => 1,
        }
    }

    fn reference(&self, args: &mut [Values]) {
        let [x, out] = args else { return };
        let factor = self.reduction() as f64;
        for at in 0..out.value.len() {
            // equal ranks: a sum is a multiple, a gathering repeats the input
            let value = x.value[at % x.value.len()] * factor;
            out.set(at, value, value.abs());
        }
    }
}
