//! Placing activations into a few arenas, from nothing but their sizes and lifetimes.

use crate::device::Arena;
use crate::error::{Error, Result};
use crate::kernel::Prepared;

/// A value that is not placed: a weight, a cache, a slot, or whatever else the caller owns.
pub const EXTERNAL: u32 = u32::MAX;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Pool, below [`Arena::pools`].
    pub pool: u8,
    /// Offset in the pool, in bytes.
    pub at: u64,
    /// Bytes of the value: the largest operand that names it.
    pub bytes: u64,
}

/// Places the activations of a sequence of launches. `launches` gives, for each, the value behind every operand in order:
/// a number below the count of values, or [`EXTERNAL`]. A value lives from its first to its last launch; values that live at the
/// same time do not overlap; where the device has several pools, no launch reads and writes the same pool. Every place is a multiple
/// of [`Arena::align`], which is the alignment that a caller may vouch for.
///
/// Returns one place per value. Largest values first, lowest free offset first (greedy by size, as in arXiv:2001.03288).
pub fn plan(launches: &[(&Prepared, &[u32])], rules: Arena) -> Result<Vec<Place>> {
    let steps: Vec<Step> = launches
        .iter()
        .map(|(prepared, values)| {
            let operands = prepared.operands();
            if operands.len() != values.len() {
                return Err(Error::Arity {
                    kernel: prepared.choice().kernel.name,
                    got: values.len(),
                    expected: operands.len(),
                    names: operands.iter().map(|o| o.name).collect::<Vec<_>>().join(", "),
                });
            }
            let used = operands.iter().zip(values.iter()).filter(|(_, v)| **v != EXTERNAL);
            Ok(used
                .map(|(o, v)| Use { value: *v as usize, bytes: o.bytes, writes: o.access.writes() })
                .collect())
        })
        .collect::<Result<_>>()?;
    place(&steps, rules)
}

/// One use of a value by one launch.
struct Use {
    value: usize,
    bytes: u64,
    writes: bool,
}

type Step = Vec<Use>;

#[derive(Clone, Default)]
struct Value {
    bytes: u64,
    life: Option<(usize, usize)>,
}

fn place(steps: &[Step], rules: Arena) -> Result<Vec<Place>> {
    let count = steps.iter().flatten().map(|u| u.value + 1).max().unwrap_or(0);
    let mut values = vec![Value::default(); count];
    for (at, step) in steps.iter().enumerate() {
        for used in step {
            let value = &mut values[used.value];
            value.bytes = value.bytes.max(used.bytes);
            value.life = Some(value.life.map_or((at, at), |(first, _)| (first, at)));
        }
    }
    let pools = assign_pools(steps, count, rules.pools.max(1))?;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&v| std::cmp::Reverse(values[v].bytes));
    let align = u64::from(rules.align.max(1));
    let mut places: Vec<Option<Place>> = vec![None; count];
    for &v in &order {
        let (bytes, Some((first, last))) = (values[v].bytes, values[v].life) else {
            places[v] = Some(Place { pool: 0, at: 0, bytes: 0 });
            continue;
        };
        let mut taken: Vec<(u64, u64)> = (0..count)
            .filter_map(|o| {
                let place = places[o].filter(|p| p.pool == pools[v] && p.bytes > 0)?;
                let (f, l) = values[o].life?;
                (f <= last && first <= l).then_some((place.at, place.at + place.bytes))
            })
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (begin, end) in taken {
            if at + bytes <= begin {
                break;
            }
            at = at.max(end.next_multiple_of(align));
        }
        if at.checked_add(bytes).is_none_or(|end| end > rules.max_bytes) {
            return Err(Error::Unsupported {
                what: "this sequence of launches",
                why: format!(
                    "its activations do not fit in {} pools of {} bytes; use smaller batches",
                    rules.pools, rules.max_bytes
                ),
            });
        }
        places[v] = Some(Place { pool: pools[v], at, bytes });
    }
    Ok(places.into_iter().flatten().collect())
}

/// Colours the values so that no launch reads from a pool that it writes. Depth-first with backtracking: chains of launches are
/// coloured at once, and the search is bounded by the few pools.
fn assign_pools(steps: &[Step], count: usize, pools: u8) -> Result<Vec<u8>> {
    if pools == 1 {
        return Ok(vec![0; count]);
    }
    let mut conflicts: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut first_use = vec![usize::MAX; count];
    for (at, step) in steps.iter().enumerate() {
        for used in step {
            first_use[used.value] = first_use[used.value].min(at);
        }
        for w in step.iter().filter(|u| u.writes) {
            for r in step.iter().filter(|u| !u.writes && u.value != w.value) {
                conflicts[w.value].push(r.value);
                conflicts[r.value].push(w.value);
            }
        }
    }
    // in the order of first use, whatever the numbers: a value's conflicts are then mostly its neighbours, and a dead end is undone
    // where it arose
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&value| first_use[value]);
    let mut colours: Vec<Option<u8>> = vec![None; count];
    let mut budget = 100_000usize;
    let mut at = 0;
    let mut next = vec![0u8; count];
    while let Some(&value) = order.get(at) {
        let free = (next[at]..pools).find(|c| !conflicts[value].iter().any(|&o| colours[o] == Some(*c)));
        match free {
            Some(colour) => {
                colours[value] = Some(colour);
                next[at] = colour + 1;
                at += 1;
                if at < count {
                    next[at] = 0;
                }
            }
            None if at == 0 || budget == 0 => {
                return Err(Error::Unsupported {
                    what: "this sequence of launches",
                    why: format!("its activations cannot be kept apart in {pools} pools"),
                });
            }
            None => {
                budget -= 1;
                at -= 1;
                colours[order[at]] = None;
            }
        }
    }
    Ok(colours.into_iter().map(|c| c.unwrap_or(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(value: usize, bytes: u64, writes: bool) -> Use {
        Use { value, bytes, writes }
    }

    /// A chain 0 -> 1 -> 2 -> .. with a residual from `i` to `i + 2`.
    fn chain(len: usize) -> Vec<Step> {
        let mut steps = vec![vec![used(0, 100, true)]];
        for i in 1..len {
            let mut step = vec![used(i - 1, 100, false), used(i, 100 + i as u64, true)];
            if i >= 2 {
                step.push(used(i - 2, 100, false));
            }
            steps.push(step);
        }
        steps
    }

    fn verify(steps: &[Step], places: &[Place], pools: u8) {
        for step in steps {
            for a in step {
                for b in step {
                    if a.value != b.value {
                        let (p, q) = (places[a.value], places[b.value]);
                        let apart = p.pool != q.pool || p.at + p.bytes <= q.at || q.at + q.bytes <= p.at;
                        assert!(apart, "{p:?} and {q:?} overlap");
                        if pools > 1 && a.writes && !b.writes {
                            assert_ne!(p.pool, q.pool);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn chains_reuse_memory_in_one_pool_and_in_three() {
        for pools in [1, 3] {
            let steps = chain(40);
            let rules = Arena { pools, align: 64, max_bytes: 1 << 20 };
            let places = place(&steps, rules).unwrap();
            verify(&steps, &places, pools);
            let end = places.iter().map(|p| p.at + p.bytes).max().unwrap();
            assert!(end < 1000, "40 values of 100 bytes, three alive: {end}");
        }
    }

    /// The numbers of values say nothing of the order in which they are used: by number, this search would not end in its budget.
    #[test]
    fn pools_are_chosen_in_the_order_of_use() {
        const LEN: usize = 400;
        let mut steps = chain(LEN);
        // 7 has no divisor in common with 400
        steps.iter_mut().flatten().for_each(|used| used.value = used.value * 7 % LEN);
        let rules = Arena { pools: 3, align: 64, max_bytes: 1 << 20 };
        let places = place(&steps, rules).unwrap();
        verify(&steps, &places, 3);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let rules = Arena { pools: 1, align: 64, max_bytes: 150 };
        assert!(place(&chain(3), rules).is_err());
    }
}
