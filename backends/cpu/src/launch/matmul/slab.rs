//! B that is not packed, widened once for all blocks of rows instead of once for each: all lanes write a *slab* of its panels to the
//! scratch, and go through it as if it had been packed.

use super::driver::{DEPTH, Plan};
use super::operand::Words;
use super::source::Source;
use super::tile::{Steps, columns};
use crate::simd::Simd;
use crate::spmd::Out;
use crate::team::Lane;
use std::marker::PhantomData;
use std::ops::Range;

/// Most f32 of a slab, which is to stay in the last level of the caches; small products have several in tests.
const MOST: usize = if cfg!(test) { 8 << 10 } else { 2 << 20 };

/// How B is cut into slabs: fixed when a product is prepared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slabs {
    /// Panels of a slab; 0 where every block widens for itself, having no other to share with.
    panels: usize,
    /// f32 of a panel.
    each: usize,
}

impl Slabs {
    /// For `m` rows against the panels of `B`.
    pub(crate) fn new<S: Simd, B: Source>(plan: &Plan, m: usize, n: usize, k: usize) -> Self {
        let each = B::Widened::stored(k.div_ceil(<B::A as Words>::PER), columns::<S>());
        let alone = B::PACKED || plan.tiles::<S, B::A>(m).blocks() < 2 || each == 0 || each > MOST;
        let panels = if alone { 0 } else { (MOST / each).min(n.div_ceil(columns::<S>())) };
        Slabs { panels, each }
    }

    /// f32 of scratch.
    pub(crate) fn len(&self) -> usize {
        self.panels * self.each
    }

    /// The panels of each slab of `panels`; none where there are no slabs.
    pub(crate) fn cut(&self, panels: usize) -> impl Iterator<Item = Range<usize>> {
        let each = self.panels;
        let starts = (0..panels).step_by(each.max(1)).take_while(move |_| each > 0);
        starts.map(move |first| first..(first + each).min(panels))
    }

    /// Widens the slab of `panels` of a matrix with all lanes, and waits for them. They share `others` items of other work with it.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the operand, its panels and where they go")]
    pub(crate) fn widen<'a, S: Simd, B: Source>(
        &self,
        s: S,
        lane: &Lane<'_>,
        b: &B,
        matrix: usize,
        panels: Range<usize>,
        k: usize,
        scratch: Out<'a, f32>,
        at: usize,
        (others, other): (usize, impl Fn(usize)),
    ) -> Slab<'a, B> {
        let depth = DEPTH / B::Widened::stored(1, 1).max(1) * <B::A as Words>::PER;
        let slices = k.div_ceil(depth);
        let stored = |k: usize| B::Widened::stored(k.div_ceil(<B::A as Words>::PER), columns::<S>());
        let items = others + panels.len() * slices;
        for item in lane.share(items) {
            // spread evenly, so that a lane gets the same part of the other work as without slabs
            let before = item * others / items;
            if (item + 1) * others / items > before {
                other(before);
                continue;
            }
            let item = item - before;
            let (index, k0) = (item / slices, item % slices * depth);
            let ks = k0..(k0 + depth).min(k);
            let at = at + index * self.each;
            // SAFETY: slices of panels are apart, and every item is one lane's.
            let out = unsafe { scratch.slice(at + stored(ks.start)..at + stored(ks.end)) };
            b.widen(s, matrix, panels.start + index, ks, out);
        }
        lane.barrier();
        // SAFETY: nobody writes it before the next barrier.
        let words = unsafe { scratch.shared(at..at + panels.len() * self.each) };
        Slab { words, first: panels.start, each: self.each, from: PhantomData }
    }

    /// Where the slab begins in a scratch of which `packed` rows of A come first: behind what the lanes have for themselves.
    pub(crate) fn start(&self, plan: &Plan, packed: usize) -> usize {
        plan.own(packed, plan.lanes).start
    }
}

/// A slab of panels as a source that lies in memory.
pub(crate) struct Slab<'a, B> {
    words: &'a [f32],
    first: usize,
    each: usize,
    from: PhantomData<B>,
}

impl<B> Clone for Slab<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B> Copy for Slab<'_, B> {}

impl<B: Source> Source for Slab<'_, B> {
    type A = B::A;
    type Direct = B::Widened;
    type Widened = B::Widened;
    const PACKED: bool = true;
    const WIDENS: bool = false;

    #[inline(always)]
    fn panel(&self, nr: usize, _: usize, panel: usize, ks: Range<usize>) -> &[f32] {
        let at = (panel - self.first) * self.each;
        let stored = |k: usize| B::Widened::stored(k.div_ceil(<B::A as Words>::PER), nr);
        &self.words[at + stored(ks.start)..at + stored(ks.end)]
    }

    #[inline(always)]
    fn panels(&self, nr: usize, _: usize, panels: Range<usize>, ks: Range<usize>) -> (&[f32], usize) {
        let [first, last] = [panels.start, panels.end - 1].map(|panel| (panel - self.first) * self.each);
        let stored = |k: usize| B::Widened::stored(k.div_ceil(<B::A as Words>::PER), nr);
        (&self.words[first + stored(ks.start)..last + stored(ks.end)], self.each)
    }

    fn widen<S: Simd>(&self, _: S, _: usize, _: usize, _: Range<usize>, _: &mut [f32]) {}
}
