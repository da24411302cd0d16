//! Bytes for the operands of a case: random data by its fill, slots that mean something together, NaN wherever an op must not look.

use crate::case::{Case, Fill};
use crate::random::Random;
use half::f16;
use perjoule_kernels::op::{Attention, KvAppend, Quantise, Sample};
use perjoule_kernels::{Access, DType, KvLayout, Matrix, Op, Operand, Result, Rows, block};

/// Byte that fills outputs before a launch, gaps and unused cache entries: NaN in every float type and block format.
pub(crate) const POISON: u8 = 0xff;

/// How numbers of an operand are drawn.
#[derive(Clone, Copy, PartialEq)]
enum Draw {
    /// As the fill says.
    Data,
    /// As the fill says, but within a few powers of two, since it goes through an exponential.
    Score,
    /// Above 0: scales of quantised data.
    Scale,
    /// Few distinct values a row, so that ties occur and different values stay apart after a softmax.
    Logits,
    /// In `[0, 1)`.
    Uniform,
}

/// What an operand holds before the launch.
enum Role {
    /// Numbers where `live` says (everywhere when it is `None`), NaN elsewhere.
    Numbers { live: Option<Vec<bool>>, draw: Draw },
    /// Slots.
    Slots(Vec<i32>),
    /// Nothing: it is only written.
    Output,
}

fn data() -> Role {
    Role::Numbers { live: None, draw: Draw::Data }
}

fn drawn(draw: Draw) -> Role {
    Role::Numbers { live: None, draw }
}

fn rows_drawn(rows: Rows, draw: Draw) -> Role {
    let mut live = vec![false; rows.extent().unwrap_or(0)];
    for o in (0..rows.outer).filter(|_| rows.len > 0) {
        for i in 0..rows.inner {
            let start = rows.start(o, i);
            live[start..start + rows.len].fill(true);
        }
    }
    Role::Numbers { live: Some(live), draw }
}

fn rows(rows: Rows) -> Role {
    rows_drawn(rows, Draw::Data)
}

fn matrix(strides: Matrix, batch: usize, rows: usize, cols: usize) -> Role {
    let extent = strides.extent(batch, rows, cols).unwrap_or(0);
    if extent as u128 == batch as u128 * rows as u128 * cols as u128 {
        return data();
    }
    let mut live = vec![false; extent];
    for b in 0..batch {
        for r in 0..rows {
            for c in 0..cols {
                live[strides.at(b, r, c)] = true;
            }
        }
    }
    Role::Numbers { live: Some(live), draw: Draw::Data }
}

/// Slots of the sequences of one step.
struct Sequences {
    q_offsets: Vec<i32>,
    kv_len: Vec<i32>,
    /// Empty when the cache is contiguous.
    table: Vec<i32>,
    positions: Vec<i32>,
}

/// Lengths that meet the edges: full, empty, one, one short of the queries, one short of full, anything.
fn sequences(
    batch: usize,
    q_len: usize,
    ragged: bool,
    tokens: usize,
    kv: &KvLayout,
    random: &mut Random,
) -> Sequences {
    let mut q_offsets = vec![0i32];
    let mut left = tokens;
    for b in 0..batch {
        let later = (batch - b - 1) * q_len;
        let (low, high) = (left.saturating_sub(later), q_len.min(left));
        let n = match ragged {
            true if low == 0 && random.below(3) == 0 => 0,
            true => random.within(low as i64, high as i64) as usize,
            false => q_len,
        };
        left -= n.min(left);
        q_offsets.push(q_offsets[b] + n as i32);
    }
    let turn = random.below(6);
    let kv_len: Vec<i32> = (0..batch)
        .map(|b| {
            let full = kv.capacity;
            let len = match if b == 0 && turn != 1 { 0 } else { (b + turn) % 6 } {
                0 => full - if turn > 3 { random.below(full.min(5) + 1) } else { 0 },
                1 => 0,
                2 => 1,
                3 => q_len.saturating_sub(1),
                4 => full.saturating_sub(1),
                _ => random.below(full + 1),
            };
            len.min(full) as i32
        })
        .collect();
    let mut table = Vec::new();
    if let Some(paging) = kv.paging {
        let mut free: Vec<i32> = (0..paging.blocks as i32).collect();
        random.shuffle(&mut free);
        for &length in &kv_len {
            let used = (length as usize).div_ceil(paging.block);
            for block in 0..kv.blocks_per_sequence() {
                // what lies behind a sequence's length is never followed
                table.push(if block < used { free.pop().unwrap_or(0) } else { -1 });
            }
        }
    }
    let mut positions = Vec::new();
    for b in 0..batch {
        let n = q_offsets[b + 1] - q_offsets[b];
        positions.extend((0..n).map(|i| (kv_len[b] - n + i).max(0)));
    }
    positions.resize(tokens, 0);
    Sequences { q_offsets, kv_len, table, positions }
}

fn cache(op: &Attention, s: &Sequences) -> Role {
    let mut live = vec![false; op.kv.extent(op.batch).unwrap_or(0)];
    let width = op.kv.blocks_per_sequence();
    for (b, &length) in s.kv_len.iter().enumerate() {
        let table = s.table.get(b * width..(b + 1) * width).unwrap_or(&[]);
        for head in 0..op.kv.kv_heads {
            for token in 0..length as usize {
                let start = op.kv.start(b, head, token, table);
                live[start..start + op.kv.head_dim].fill(true);
            }
        }
    }
    Role::Numbers { live: Some(live), draw: Draw::Score }
}

/// The slots that `KvAppend` takes, in order.
fn append_slots(op: &KvAppend, s: &Sequences) -> Vec<Role> {
    let mut list = vec![Role::Slots(s.kv_len.clone())];
    if op.ragged {
        list.push(Role::Slots(s.q_offsets.clone()));
    }
    if op.kv.paging.is_some() {
        list.push(Role::Slots(s.table.clone()));
    }
    list
}

/// What each operand holds, in the order of `Op::operands`.
fn roles(op: &Op, fill: Fill, random: &mut Random) -> Vec<Role> {
    match op {
        Op::MatMul(op) => {
            let mut list =
                vec![matrix(op.a.strides, op.batch, op.m, op.k), matrix(op.b.strides, op.batch, op.k, op.n)];
            list.extend([op.a_scale, op.b_scale].iter().flatten().map(|_| drawn(Draw::Scale)));
            list.extend(op.epilogue.bias.map(|_| data()));
            list.extend(op.epilogue.residual.map(|r| matrix(r.strides, op.batch, op.m, op.n)));
            list.push(Role::Output);
            list
        }
        Op::Attention(op) => {
            let s = sequences(op.batch, op.q_len, op.ragged, op.q.outer, &op.kv, random);
            let mut list = vec![
                rows_drawn(op.q, Draw::Score),
                cache(op, &s),
                cache(op, &s),
                Role::Slots(s.kv_len.clone()),
            ];
            if op.ragged {
                list.push(Role::Slots(s.q_offsets.clone()));
            }
            if op.kv.paging.is_some() {
                list.push(Role::Slots(s.table.clone()));
            }
            list.extend(op.sinks.then(|| drawn(Draw::Score)));
            list.push(Role::Output);
            list
        }
        Op::GroupedMatMul(op) => {
            // experts' shares of the positions, some of them empty
            let mut order: Vec<i32> = (0..op.rows as i32).collect();
            random.shuffle(&mut order);
            let mut ends: Vec<i32> = (1..op.experts).map(|_| random.below(op.rows + 1) as i32).collect();
            ends.sort_unstable();
            let mut offsets = vec![0];
            if op.experts > 0 {
                offsets.extend(ends);
                offsets.push(op.rows as i32);
            }
            for pair in offsets.windows(2) {
                order[pair[0] as usize..pair[1] as usize].sort_unstable();
            }
            let mut list = vec![
                matrix(op.a.strides, 1, op.a_rows, op.k),
                matrix(op.b.strides, op.experts, op.k, op.n),
                Role::Slots(offsets),
                Role::Slots(order),
            ];
            list.extend(op.bias.map(|_| data()));
            list.push(Role::Output);
            list
        }
        Op::RmsNorm(op) => {
            let mut list = vec![rows(op.x)];
            list.extend(op.residual.map(|r| rows(r.rows)));
            list.push(data());
            list.extend(op.residual.map(|_| Role::Output));
            list.push(Role::Output);
            list
        }
        Op::LayerNorm(op) => {
            let mut list = vec![rows(op.x)];
            list.extend(op.residual.map(|r| rows(r.rows)));
            list.push(data());
            list.extend(op.bias.then(data));
            list.extend(op.residual.map(|_| Role::Output));
            list.push(Role::Output);
            list
        }
        Op::Rope(op) => {
            let position = |_| random.one_of(&[0, 1, 2, 7, 63, 511, 4095, 100_000]);
            vec![Role::Slots((0..op.x.outer).map(position).collect()), rows(op.x)]
        }
        Op::Gated(op) => vec![rows(op.gate), rows(op.up), Role::Output],
        Op::Softmax(op) => vec![rows_drawn(op.x, Draw::Score), Role::Output],
        Op::Embed(op) => {
            let mut ids: Vec<i32> = (0..op.tokens).map(|_| random.below(op.vocab.max(1)) as i32).collect();
            if fill == Fill::Special || op.vocab == 0 {
                let outside = [-1, op.vocab as i32, i32::MIN, i32::MAX];
                for (i, id) in ids.iter_mut().enumerate().filter(|(i, _)| op.vocab == 0 || i % 2 == 0) {
                    *id = outside[(i / 2) % 4];
                }
            } else if let Some(last) = ids.last_mut() {
                *last = op.vocab as i32 - 1;
            }
            vec![Role::Slots(ids), data(), Role::Output]
        }
        Op::Add(op) => vec![rows(op.a), rows(op.b), Role::Output],
        Op::Route(_) => {
            vec![drawn(Draw::Logits), Role::Output, Role::Output, Role::Output, Role::Output]
        }
        Op::Combine(op) => {
            let mut list = vec![rows(op.x), drawn(Draw::Scale)];
            list.extend(op.residual.then(|| rows(op.out)));
            list.push(Role::Output);
            list
        }
        Op::KvAppend(op) => {
            let s = sequences(op.batch, op.q_len, op.ragged, op.src_k.outer, &op.kv, random);
            let mut list = vec![rows(op.src_k), rows(op.src_v)];
            list.extend(append_slots(op, &s));
            list.extend([data(), data()]);
            list
        }
        Op::Advance(op) => {
            let kv = KvLayout::contiguous(1, 1000, 1);
            let s = sequences(op.batch, op.q_len, op.ragged, op.tokens, &kv, random);
            let mut list = Vec::new();
            list.extend(op.ragged.then(|| Role::Slots(s.q_offsets.clone())));
            list.extend([Role::Slots(s.kv_len), Role::Output]);
            list
        }
        Op::Argmax(op) => vec![rows_drawn(op.x, Draw::Logits), Role::Output],
        Op::Sample(op) => vec![rows_drawn(op.x, Draw::Logits), drawn(Draw::Uniform), Role::Output],
        Op::Cast(op) => vec![rows(op.x), Role::Output],
        Op::Quantise(op) => {
            let mut list = vec![rows(op.x)];
            list.extend(op.scale.map(|_| Role::Output));
            list.push(Role::Output);
            list
        }
        Op::Pack(op) => vec![matrix(op.b.strides, op.matrices, op.k, op.n), Role::Output],
        Op::Collective(_) => vec![data(), Role::Output],
        Op::QkNormRopeAppend(op) => {
            let append = &op.append;
            let s =
                sequences(append.batch, append.q_len, append.ragged, append.src_k.outer, &append.kv, random);
            let mut list = vec![rows(op.q), rows(append.src_k), rows(append.src_v)];
            list.extend([op.q_norm, op.k_norm].into_iter().flatten().map(|_| data()));
            list.push(Role::Slots(s.positions.clone()));
            list.extend(append_slots(append, &s));
            list.extend([data(), data(), Role::Output]);
            list
        }
        Op::GatedMatMul(op) => {
            let (gate, up) = (&op.gate, &op.up);
            let mut list = vec![
                matrix(gate.a.strides, 1, gate.m, gate.k),
                matrix(gate.b.strides, 1, gate.k, gate.n),
                matrix(up.b.strides, 1, up.k, up.n),
            ];
            list.extend([gate, up].iter().filter_map(|part| part.epilogue.bias).map(|_| data()));
            list.push(Role::Output);
            list
        }
    }
}

/// Bytes of every operand before the launch, in the order of `Op::operands`, with constant operands in their plain form. The op must be
/// valid.
///
/// # Errors
/// When a block format refuses a value, which the fills avoid.
pub fn inputs(case: &Case) -> Result<Vec<Vec<u8>>> {
    let mut random = Random::new(case.seed);
    let operands = case.op.operands();
    let roles = roles(&case.op, case.fill, &mut random);
    let quantised = matches!(&case.op, Op::Quantise(Quantise { to, .. }) if to.is_block());
    let blocks = quantised || operands.iter().any(|o| o.dtype.is_block());
    let mut list = Vec::with_capacity(operands.len());
    for (operand, role) in operands.iter().zip(roles) {
        list.push(match role {
            _ if operand.access == Access::Write => vec![POISON; operand.bytes as usize],
            Role::Output => vec![POISON; operand.bytes as usize],
            Role::Slots(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Role::Numbers { live, draw } => {
                numbers(operand, live.as_deref(), draw, case.fill, blocks, &mut random)?
            }
        });
    }
    if let Op::Sample(op) = &case.op {
        settle_sample(op, &mut list)?;
    }
    Ok(list)
}

/// Whether element `at` is one of those that the op reads.
fn is_live(live: Option<&[bool]>, at: usize) -> bool {
    live.is_none_or(|live| live[at])
}

fn numbers(
    operand: &Operand,
    live: Option<&[bool]>,
    draw: Draw,
    fill: Fill,
    blocks: bool,
    random: &mut Random,
) -> Result<Vec<u8>> {
    let (dtype, count) = (operand.dtype, operand.elements as usize);
    let mut bytes = vec![POISON; operand.bytes as usize];
    if dtype.is_block() {
        for (index, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            if is_live(live, index * dtype.block_len()) {
                fill_block(dtype, fill, block, random)?;
            }
        }
        return Ok(bytes);
    }
    if fill == Fill::Codes {
        let size = dtype.block_bytes();
        for (at, element) in bytes.chunks_exact_mut(size).enumerate().filter(|(at, _)| is_live(live, *at)) {
            let code = if size < 4 { at as u64 } else { random.bits() };
            element.copy_from_slice(&code.to_le_bytes()[..size]);
        }
        return Ok(bytes);
    }
    let mut values: Vec<f32> = (0..count).map(|_| number(dtype, draw, fill, random)).collect();
    if fill == Fill::Special && dtype.is_float() && matches!(draw, Draw::Data | Draw::Score | Draw::Logits) {
        sprinkle(dtype, draw, blocks, &mut values, random);
    }
    let size = dtype.block_bytes();
    match live {
        None => block::encode(dtype, &values, &mut bytes)?,
        Some(live) => {
            for at in (0..count).filter(|&at| live[at]) {
                block::encode(dtype, &values[at..at + 1], &mut bytes[at * size..(at + 1) * size])?;
            }
        }
    }
    Ok(bytes)
}

fn number(dtype: DType, draw: Draw, fill: Fill, random: &mut Random) -> f32 {
    match (draw, fill) {
        (Draw::Uniform, _) => random.unit(),
        (Draw::Logits, _) => random.within(-40, 40) as f32 / 8.0,
        (Draw::Scale, Fill::Integers) => random.one_of(&[0.25, 0.5, 1.0, 2.0]),
        (Draw::Scale, _) => 0.25 + random.unit(),
        _ if dtype.is_integer() => match fill {
            Fill::Integers => random.within(-4, 4) as f32,
            _ if dtype == DType::I8 => random.within(-128, 127) as f32,
            _ => random.within(-100_000, 100_000) as f32,
        },
        (_, Fill::Integers) => random.within(-4, 4) as f32,
        (Draw::Score, Fill::Wide) => random.normal() * (random.within(-3, 3) as f32).exp2(),
        (_, Fill::Wide) => {
            let span = match dtype {
                DType::F16 => 6,
                DType::F8E4M3 => 4,
                _ => 18,
            };
            random.normal() * (random.within(-span, span) as f32).exp2()
        }
        (Draw::Data, Fill::Large) if matches!(dtype, DType::F32 | DType::BF16) => 1e5 * random.normal(),
        _ => random.normal(),
    }
}

/// Puts a few NaN, infinities and subnormals among `values`.
fn sprinkle(dtype: DType, draw: Draw, blocks: bool, values: &mut [f32], random: &mut Random) {
    let tiny = match dtype {
        DType::F16 => 3e-7,
        DType::F8E4M3 => 0.004,
        _ => 1e-40,
    };
    if values.is_empty() {
        return;
    }
    let mut put = |value: f32, random: &mut Random| {
        let at = random.below(values.len());
        values[at] = value;
    };
    for _ in 0..4 {
        put(tiny, random);
        put(-tiny, random);
    }
    put(f32::NAN, random);
    // sums of scaled codes meet an infinity in another way than dequantised values do; weights that an exponential has
    // rounded to 0 turn it into NaN
    if !blocks && draw == Draw::Data {
        put(f32::INFINITY, random);
        put(f32::NEG_INFINITY, random);
    }
}

/// A live block: random codes with scales of 1 for integers, random scales for a wide spread, else quantised normal numbers.
fn fill_block(dtype: DType, fill: Fill, block: &mut [u8], random: &mut Random) -> Result<()> {
    if !matches!(fill, Fill::Integers | Fill::Wide | Fill::Codes) {
        let values: Vec<f32> = (0..dtype.block_len()).map(|_| random.normal()).collect();
        return block::encode(dtype, &values, block);
    }
    block.iter_mut().for_each(|byte| *byte = (random.bits() >> 32) as u8);
    let exact = fill == Fill::Integers;
    let mut scale = |to: &mut [u8]| {
        let value = if exact { 1.0 } else { random.normal() * (random.within(-9, 1) as f32).exp2() };
        to.copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    match dtype {
        DType::Q8_0 | DType::Q4_0 => scale(&mut block[0..2]),
        DType::Q4K => {
            scale(&mut block[0..2]);
            scale(&mut block[2..4]);
        }
        DType::Q6K => scale(&mut block[208..210]),
        DType::MxFp4 => block[0] = if exact { 127 } else { random.within(117, 131) as u8 },
        _ => {}
    }
    if exact && dtype == DType::Q8_0 {
        block[2..].iter_mut().for_each(|byte| *byte = (i32::from(*byte) % 9 - 4) as u8);
    }
    if exact && dtype == DType::Q6K {
        block[192..208].iter_mut().for_each(|byte| *byte = (i32::from(*byte) % 9 - 4) as u8);
    }
    Ok(())
}

/// Moves each `uniform` into the middle of a candidate's share, so that rounding cannot change the choice.
fn settle_sample(op: &Sample, list: &mut [Vec<u8>]) -> Result<()> {
    let mut logits = vec![0.0; op.x.extent().unwrap_or(0)];
    block::decode_f64(op.dtype, &list[0], &mut logits)?;
    for (row, bytes) in list[1].chunks_exact_mut(4).enumerate() {
        let start = op.x.start_of(row);
        let row = &logits[start..start + op.x.len];
        let wanted = f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let candidates = op.candidates(row);
        let whole = Sample { top_p: None, ..*op }.candidates(row);
        let mut before = 0.0;
        // a prefix whose mass is almost top_p may be one candidate longer or shorter
        let near = whole.iter().any(|(_, p)| {
            before += p;
            op.top_p.is_some_and(|limit| (before - f64::from(limit)).abs() < 1e-4)
        });
        let mut before = 0.0;
        let mut chosen = candidates.first().map_or(0.0, |(_, p)| p * 0.25);
        for (_, p) in candidates.iter().filter(|_| !near) {
            if (before..before + p).contains(&wanted) && *p > 1e-3 {
                chosen = before + p * 0.5;
            }
            before += p;
        }
        bytes.copy_from_slice(&(chosen as f32).to_le_bytes());
    }
    Ok(())
}
