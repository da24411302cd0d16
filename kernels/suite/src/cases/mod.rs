//! Cases of a row, made from its own tile: every edge of every dimension (0, 1, tile - 1, tile, tile + 1, 2 tile + 3), pairs of edges,
//! every combination of element types that the row does not refuse, and each option of the op.

mod attention;
mod products;
mod rows;

use crate::case::{Case, Fill, Scope};
use crate::random::{Random, seed_of};
use perjoule_kernels::{Choice, DType, Device, Op, PackFormat, Reason};
use std::collections::{BTreeMap, HashMap};

/// Plain float types.
const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];
/// Block formats.
const BLOCKS: [DType; 5] = [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4];

/// The cases of a row with one of its configurations and pack formats, in an order that depends on nothing else.
///
/// # Errors
/// When the row refuses every case: what the device lacks, else its most frequent reason.
pub fn cases(device: &dyn Device, choice: &Choice, scope: Scope) -> Result<Vec<Case>, Reason> {
    let (kernel, info) = (choice.kernel, device.info());
    let config = choice.config();
    let accept = |op: &Op| choice.refusal(op, info);
    let mut maker = Maker {
        accept: &accept,
        scope,
        random: Random::new(seed_of(kernel.name)),
        list: Vec::new(),
        ids: HashMap::new(),
        refusals: BTreeMap::new(),
    };
    match kernel.op {
        "matmul" => products::matmul(&mut maker, config.tile),
        "grouped_matmul" => products::grouped(&mut maker, config.tile),
        "gated_matmul" => products::gated_matmul(&mut maker, config.tile),
        "pack" => {
            let mut formats: Vec<&'static PackFormat> = Vec::new();
            for format in device.kernels().iter().flat_map(|k| k.packs) {
                if !formats.contains(format) {
                    formats.push(format);
                }
            }
            products::pack(&mut maker, &formats);
        }
        "attention" => attention::attention(&mut maker, config.tile),
        "kv_append" => attention::kv_append(&mut maker, config.tile),
        "advance" => attention::advance(&mut maker),
        "qk_norm_rope_append" => attention::qk_norm_rope_append(&mut maker, config.tile),
        "rms_norm" => rows::rms_norm(&mut maker, config.tile),
        "layer_norm" => rows::layer_norm(&mut maker, config.tile),
        "rope" => rows::rope(&mut maker, config.tile),
        "gated" => rows::gated(&mut maker, config.tile),
        "softmax" => rows::softmax(&mut maker, config.tile),
        "embed" => rows::embed(&mut maker, config.tile),
        "add" => rows::add(&mut maker, config.tile),
        "route" => rows::route(&mut maker, config.tile),
        "combine" => rows::combine(&mut maker, config.tile),
        "argmax" => rows::argmax(&mut maker, config.tile),
        "sample" => rows::sample(&mut maker, config.tile),
        "cast" => rows::cast(&mut maker, config.tile),
        "quantise" => rows::quantise(&mut maker, config.tile),
        "collective" => rows::collective(&mut maker),
        _ => {}
    }
    if maker.list.is_empty() {
        // what the device lacks explains more than a type that the row would refuse anywhere
        let weight = |(reason, count): &(Reason, usize)| (reason.lacks_feature(), *count);
        let most = maker.refusals.into_values().max_by_key(weight);
        let none = "the suite has no cases for this op";
        return Err(most.map_or(Reason::new(none), |(reason, _)| reason));
    }
    Ok(maker.list)
}

/// Collects the cases that a row does not refuse.
struct Maker<'a> {
    accept: &'a dyn Fn(&Op) -> Option<Reason>,
    scope: Scope,
    random: Random,
    list: Vec<Case>,
    /// How often an id was wanted.
    ids: HashMap<String, usize>,
    /// Reasons by their text, and how often each was given.
    refusals: BTreeMap<String, (Reason, usize)>,
}

impl Maker<'_> {
    /// Whether the op is valid and the row runs it.
    fn accepts(&mut self, op: &Op) -> bool {
        if op.validate().is_err() {
            return false;
        }
        match (self.accept)(op) {
            None => true,
            Some(reason) => {
                self.refusals.entry(reason.to_string()).or_insert((reason, 0)).1 += 1;
                false
            }
        }
    }

    /// Adds a case, unless the op is invalid, the row refuses it, or it is there.
    fn push(&mut self, label: &str, op: impl Into<Op>, fill: Fill) -> bool {
        let op = op.into();
        if !self.accepts(&op) {
            return false;
        }
        // a block of activations of 8 bits is as exact as its largest element allows: no bound by the terms holds where others are small
        let fill = if quantises(&op) && fill == Fill::Wide { Fill::Random } else { fill };
        if self.list.iter().rev().take(400).any(|c| c.op == op && c.fill == fill) {
            return true;
        }
        let sizes: Vec<String> = op.shape().iter().map(|(name, size)| format!("{name}{size}")).collect();
        let id = format!("{}-{}-{label}-{}", op.dtype_label(), sizes.join("-"), fill.name());
        let count = self.ids.entry(id.clone()).or_default();
        *count += 1;
        let id = if *count > 1 { format!("{id}-{count}") } else { id };
        let seed = seed_of(&id);
        self.list.push(Case { id, op, fill, seed });
        true
    }

    fn is_full(&self) -> bool {
        self.scope == Scope::Full
    }

    /// `sample` or `full`, by scope.
    fn count(&self, sample: usize, full: usize) -> usize {
        if self.is_full() { full } else { sample }
    }
}

/// Sizes at which code for tiles of `tile` goes wrong, largest last.
fn edges(tile: usize) -> Vec<usize> {
    let tile = tile.max(1);
    let mut list = vec![0, 1, tile - 1, tile, tile + 1, 2 * tile + 3];
    list.sort_unstable();
    list.dedup();
    list
}

/// A dimension of a tile, or a stand-in where the row names fewer.
fn side(tile: &[usize], index: usize, otherwise: usize) -> usize {
    tile.get(index).copied().filter(|&t| t > 0).unwrap_or(otherwise)
}

/// Fills in turn, by index.
fn turn(index: usize) -> Fill {
    [Fill::Integers, Fill::Random, Fill::Wide][index % 3]
}

/// Whether a row may quantise activations.
fn quantises(op: &Op) -> bool {
    match op {
        Op::MatMul(op) => op.policy.quantised_activations,
        Op::GroupedMatMul(op) => op.policy.quantised_activations,
        Op::GatedMatMul(op) => op.gate.policy.quantised_activations || op.up.policy.quantised_activations,
        _ => false,
    }
}
