//! Checking the output of any op from its bytes: in full where that is cheap, by sampling and Freivalds' check where it is not.
//!
//! What the harness publishes a figure for is checked by this code, and so are the large cases of the suite.

use crate::judge::{Expected, Tolerance, Verdict};
use crate::random::Random;
use perjoule_kernels::op::{
    Activation, Attention, Granularity, GroupedMatMul, MatMul, Tensor2, Values, slots,
};
use perjoule_kernels::{Access, DType, KvLayout, Matrix, Numerics, Op, Result, Rows, block};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verification {
    /// Largest `|got - want| / magnitude` over the elements that were compared, where `magnitude` is the sum of the absolute values of
    /// the terms, and at least the smallest normal number of the output's type: what a record carries.
    pub max_rel_err: f64,
    /// Largest error as a share of what is allowed; at most 1 where all is right.
    pub worst: f64,
    /// Elements compared with the reference.
    pub checked_elements: u64,
    /// Whether every element of the output took part, one by one or through Freivalds' check.
    pub complete: bool,
    /// Whether nothing was found wrong.
    pub passed: bool,
    /// What was found wrong, else empty.
    pub report: Vec<String>,
}

impl From<Verdict> for Verification {
    fn from(verdict: Verdict) -> Self {
        Verification {
            max_rel_err: verdict.relative,
            worst: verdict.worst,
            checked_elements: verdict.checked,
            complete: true,
            passed: verdict.wrong == 0,
            report: verdict.mismatches.iter().map(ToString::to_string).collect(),
        }
    }
}

/// FLOPs up to which the whole reference runs.
pub const FULL_FLOPS: u64 = 1 << 25;

/// Checks the output of one launch of `op`.
///
/// `before` holds the bytes of every operand before the launch, in the order of [`Op::operands`], constant operands in their plain
/// form (operands that are only written may be empty); `after` holds the bytes of the written operands after it, in that order.
/// Products and attention beyond [`FULL_FLOPS`] are sampled: about `budget_elements` outputs (of attention whole vectors), spread
/// evenly and at random, edges always among them, besides [`freivalds`] over the whole where the product is linear. Samples see any
/// run of wrong rows, columns or vectors that is twice as long as they are apart, and single wrong elements by chance; what lies
/// between the rows of an output is not looked at. Every other op is computed in full.
///
/// # Errors
/// When the op is invalid or the bytes are not those of its operands.
pub fn verify(
    op: &Op,
    before: &[&[u8]],
    after: &[&[u8]],
    numerics: Numerics,
    budget_elements: usize,
    seed: u64,
) -> Result<Verification> {
    op.validate()?;
    verify_within(op, before, after, &Tolerance::new(op, numerics), budget_elements, seed)
}

pub(crate) fn verify_within(
    op: &Op,
    before: &[&[u8]],
    after: &[&[u8]],
    tolerance: &Tolerance,
    budget_elements: usize,
    seed: u64,
) -> Result<Verification> {
    check_lengths(op, before, after)?;
    if op.flops() > FULL_FLOPS {
        match op {
            Op::MatMul(op) => {
                let mut found = sampled_matmul(op, before, after[0], tolerance, budget_elements, seed)?;
                if let Some(all) = freivalds(op, before, after[0], tolerance, seed)? {
                    found.complete = true;
                    found.passed &= all.passed;
                    found.report.extend(all.report);
                }
                return Ok(found);
            }
            Op::Attention(op) => {
                return sampled_attention(op, before, after[0], tolerance, budget_elements, seed);
            }
            Op::GroupedMatMul(op) => {
                return sampled_grouped(op, before, after[0], tolerance, budget_elements, seed);
            }
            _ => {}
        }
    }
    let expected = Expected::new(op, before)?;
    let mut verdict = Verdict::default();
    let written = op.operands().into_iter().enumerate().filter(|(_, o)| o.access.writes());
    for ((index, _), after) in written.zip(after) {
        expected.judge(index, before[index], after, tolerance, &mut verdict)?;
    }
    Ok(verdict.into())
}

fn check_lengths(op: &Op, before: &[&[u8]], after: &[&[u8]]) -> Result<()> {
    let operands = op.operands();
    let malformed = |why: String| perjoule_kernels::Error::Malformed { what: "operands to verify", why };
    let written: Vec<_> = operands.iter().filter(|o| o.access.writes()).collect();
    if (before.len(), after.len()) != (operands.len(), written.len()) {
        return Err(malformed(format!(
            "{} takes {} operands and writes {}; {} and {} were given",
            op.name(),
            operands.len(),
            written.len(),
            before.len(),
            after.len()
        )));
    }
    let read = operands.iter().zip(before).filter(|(o, _)| o.access != Access::Write);
    for (operand, bytes) in read.chain(written.into_iter().zip(after)) {
        if (bytes.len() as u64) < operand.bytes {
            let (name, need, have) = (operand.name, operand.bytes, bytes.len());
            return Err(malformed(format!("{name} takes {need} bytes, {have} were given")));
        }
    }
    Ok(())
}

/// Elements `start, start + stride, ..` of stored values. Where `stride` is not 1 the type must be plain; runs of a block format start
/// and end anywhere.
fn gather(dtype: DType, bytes: &[u8], start: usize, stride: usize, out: &mut [f64]) -> Result<()> {
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    if out.is_empty() {
        return Ok(());
    }
    if stride == 1 || out.len() == 1 {
        let (first, last) = (start / len, (start + out.len()).div_ceil(len));
        if len == 1 {
            return block::decode_f64(dtype, &bytes[first * size..last * size], out);
        }
        let mut whole = vec![0.0; (last - first) * len];
        block::decode_f64(dtype, &bytes[first * size..last * size], &mut whole)?;
        out.copy_from_slice(&whole[start % len..start % len + out.len()]);
        return Ok(());
    }
    for (i, out) in out.iter_mut().enumerate() {
        gather(dtype, bytes, start + i * stride, 1, std::slice::from_mut(out))?;
    }
    Ok(())
}

/// A dense row-major matrix of the chosen rows and columns.
fn submatrix(t: &Tensor2, bytes: &[u8], batch: usize, rows: &[usize], cols: &[usize]) -> Result<Values> {
    let mut value = vec![0.0; rows.len() * cols.len()];
    for (r, &row) in rows.iter().enumerate() {
        for (c, &col) in cols.iter().enumerate() {
            let at = r * cols.len() + c;
            gather(t.dtype, bytes, t.strides.at(batch, row, col), 1, &mut value[at..=at])?;
        }
    }
    Ok(Values::new(value))
}

/// A dense matrix of whole vectors: `count` elements from each start, `stride` apart.
fn vectors(dtype: DType, bytes: &[u8], starts: &[usize], stride: usize, count: usize) -> Result<Values> {
    let mut value = vec![0.0; starts.len() * count];
    for (out, &start) in value.chunks_exact_mut(count.max(1)).zip(starts) {
        gather(dtype, bytes, start, stride, out)?;
    }
    Ok(Values::new(value))
}

/// `want` of `0..n`, ascending: the first, the last, and a random one of each of as many equal parts. So one of any run of
/// `2 * n / want` neighbours is among them.
fn choose(n: usize, want: usize, random: &mut Random) -> Vec<usize> {
    if n <= want {
        return (0..n).collect();
    }
    let part = |i: usize| (i as u128 * n as u128 / want as u128) as usize;
    let mut chosen: Vec<usize> = (0..want).map(|i| part(i) + random.below(part(i + 1) - part(i))).collect();
    if let [first, .., last] = &mut chosen[..] {
        (*first, *last) = (0, n - 1);
    }
    chosen
}

/// Judges every element of `small`, a product of the chosen rows and columns of a larger one, whose results lie at `at(row, column)` of
/// `c`.
fn judge_product(
    small: &MatMul,
    args: &[Values],
    at: impl Fn(usize, usize) -> usize,
    c: &[u8],
    tolerance: &Tolerance,
    verdict: &mut Verdict,
) -> Result<()> {
    let (dtype, mut got) = (small.c.dtype, [0.0]);
    for row in 0..small.m {
        for col in 0..small.n {
            let index = at(row, col);
            gather(dtype, c, index, 1, &mut got)?;
            verdict.element("c", index, dtype, got[0], small.element(args, 0, row, col), tolerance);
        }
    }
    Ok(())
}

/// Checks about `budget_elements` elements of a product: a grid of random rows and columns in each of a few matrices of the batch.
/// `before` as for [`verify`], `c` the result.
///
/// # Errors
/// When bytes are not those of the operands.
pub fn verify_matmul_sampled(
    op: &MatMul,
    before: &[&[u8]],
    c: &[u8],
    numerics: Numerics,
    budget_elements: usize,
    seed: u64,
) -> Result<Verification> {
    let whole = Op::MatMul(*op);
    whole.validate()?;
    check_lengths(&whole, before, &[c])?;
    sampled_matmul(op, before, c, &Tolerance::new(&whole, numerics), budget_elements, seed)
}

fn sampled_matmul(
    op: &MatMul,
    before: &[&[u8]],
    c: &[u8],
    tolerance: &Tolerance,
    budget: usize,
    seed: u64,
) -> Result<Verification> {
    let mut random = Random::new(seed);
    let mut verdict = Verdict::default();
    let matrices = choose(op.batch, 4, &mut random);
    let each = (budget / matrices.len().max(1)).max(4);
    for batch in matrices {
        let side = (each as f64).sqrt().ceil() as usize;
        let rows = choose(op.m, side, &mut random);
        let cols = choose(op.n, each.div_ceil(rows.len().max(1)), &mut random);
        let starts = |t: &Tensor2, along_rows: bool, list: &[usize]| -> Vec<usize> {
            let at =
                |&i: &usize| if along_rows { t.strides.at(batch, i, 0) } else { t.strides.at(batch, 0, i) };
            list.iter().map(at).collect()
        };
        let (a, b) = (&op.a, &op.b);
        let mut args = vec![
            vectors(a.dtype, before[0], &starts(a, true, &rows), a.strides.col, op.k)?,
            vectors(b.dtype, before[1], &starts(b, false, &cols), b.strides.row, op.k)?,
        ];
        let mut next = 2;
        for (granularity, whole, chosen) in [(op.a_scale, op.m, &rows), (op.b_scale, op.n, &cols)] {
            let Some(granularity) = granularity else { continue };
            let mut all = vec![0.0; before[next].len() / 4];
            block::decode_f64(DType::F32, &before[next][..all.len() * 4], &mut all)?;
            let at = |vector: usize, k: usize| op.scale_index(granularity, whole, batch, vector, k);
            args.push(Values::new(match granularity {
                Granularity::Tensor => vec![all[batch]],
                Granularity::Vector => chosen.iter().map(|&v| all[at(v, 0)]).collect(),
                Granularity::Group(g) => {
                    let groups = |&v: &usize| (0..op.k).step_by(g).map(move |k| (v, k));
                    chosen.iter().flat_map(groups).map(|(v, k)| all[at(v, k)]).collect()
                }
            }));
            next += 1;
        }
        if let Some(dtype) = op.epilogue.bias {
            args.push(vectors(dtype, before[next], &cols, 1, 1)?);
            next += 1;
        }
        let mut small = MatMul {
            batch: 1,
            m: rows.len(),
            n: cols.len(),
            a: Tensor2 { dtype: a.dtype, strides: Matrix::row_major(rows.len(), op.k) },
            b: Tensor2 { dtype: b.dtype, strides: Matrix::col_major(op.k, cols.len()) },
            c: Tensor2 { dtype: op.c.dtype, strides: Matrix::row_major(rows.len(), cols.len()) },
            ..*op
        };
        if let Some(residual) = &mut small.epilogue.residual {
            args.push(submatrix(residual, before[next], batch, &rows, &cols)?);
            residual.strides = Matrix::row_major(rows.len(), cols.len());
        }
        let at = |row: usize, col: usize| op.c.strides.at(batch, rows[row], cols[col]);
        judge_product(&small, &args, at, c, tolerance, &mut verdict)?;
    }
    let complete = verdict.checked as u128 == op.batch as u128 * op.m as u128 * op.n as u128;
    Ok(Verification { complete, ..verdict.into() })
}

/// Freivalds' check (R. Freivalds, "Probabilistic machines can use less running time", 1977) of a whole product: `C x` against
/// `A (B x)` for a random x, in time proportional to the operands. Elements of x lie between 1 and 2 or -2 and -1: no two are equal,
/// so that columns which changed places are noticed. `None` where it does not apply: for products with an
/// activation, and for results that are not finite or at the limit of their type.
///
/// A wrong element is noticed when it is off by more than about six times what all errors of its row, which have random signs, add up
/// to; a wrong row or tile always.
///
/// # Errors
/// When the op is invalid or bytes are not those of the operands.
pub fn freivalds(
    op: &MatMul,
    before: &[&[u8]],
    c: &[u8],
    tolerance: &Tolerance,
    seed: u64,
) -> Result<Option<Verification>> {
    let whole = Op::MatMul(*op);
    whole.validate()?;
    check_lengths(&whole, before, &[c])?;
    if op.epilogue.activation != Activation::None {
        return Ok(None);
    }
    let mut random = Random::new(seed ^ 0x5eed);
    let mut entry = || {
        let size = 1.0 + f64::from(random.unit());
        if random.bits() & 1 == 0 { size } else { -size }
    };
    let x: Vec<f64> = (0..op.n).map(|_| entry()).collect();
    let mut next = 2;
    let mut scales = |granularity: Option<Granularity>| -> Result<Option<(Granularity, Vec<f64>)>> {
        let Some(granularity) = granularity else { return Ok(None) };
        let mut all = vec![0.0; before[next].len() / 4];
        block::decode_f64(DType::F32, &before[next][..all.len() * 4], &mut all)?;
        next += 1;
        Ok(Some((granularity, all)))
    };
    let (a_scale, b_scale) = (scales(op.a_scale)?, scales(op.b_scale)?);
    let scale_of = |list: &Option<(Granularity, Vec<f64>)>, whole, batch, vector, k| match list {
        Some((granularity, all)) => all[op.scale_index(*granularity, whole, batch, vector, k)],
        None => 1.0,
    };
    let mut bias = vec![0.0; op.n];
    if let Some(dtype) = op.epilogue.bias {
        gather(dtype, before[next], 0, 1, &mut bias)?;
        next += 1;
    }
    let residual = op.epilogue.residual.map(|t| (t, next));
    let factor = f64::from(op.epilogue.scale);
    let limit = op.c.dtype.max_value();
    let ulp = op.c.dtype.epsilon();
    let tiny = match op.c.dtype {
        DType::F16 => 2f64.powi(-25),
        DType::F8E4M3 => 2f64.powi(-10),
        _ => 0.0,
    };
    let mut verdict = Verification { complete: true, passed: true, ..Verification::default() };
    let mut column = vec![0.0; op.k];
    let mut across = vec![0.0; op.n];
    for batch in 0..op.batch {
        // t = B x, and the squared norm of B with its columns times those of x
        let (mut t, mut b_square) = (vec![0.0; op.k], 0.0);
        if op.b.strides.row == 1 || op.b.strides.col != 1 {
            for (col, &x) in x.iter().enumerate() {
                gather(op.b.dtype, before[1], op.b.strides.at(batch, 0, col), op.b.strides.row, &mut column)?;
                for (k, &b) in column.iter().enumerate() {
                    let b = b * scale_of(&b_scale, op.n, batch, col, k);
                    t[k] += b * x;
                    b_square += (b * x).powi(2);
                }
            }
        } else {
            for (k, t) in t.iter_mut().enumerate() {
                gather(op.b.dtype, before[1], op.b.strides.at(batch, k, 0), 1, &mut across)?;
                for (col, &b) in across.iter().enumerate() {
                    let b = b * scale_of(&b_scale, op.n, batch, col, k);
                    *t += b * x[col];
                    b_square += (b * x[col]).powi(2);
                }
            }
        }
        for row in 0..op.m {
            gather(op.a.dtype, before[0], op.a.strides.at(batch, row, 0), op.a.strides.col, &mut column)?;
            let (mut want, mut a_square) = (0.0, 0.0);
            for (k, &a) in column.iter().enumerate() {
                let a = a * scale_of(&a_scale, op.m, batch, row, k);
                want += a * t[k];
                a_square += a * a;
            }
            want *= factor;
            // the magnitude of an element is at most the product of the norms of its row and column
            let mut magnitudes = factor * factor * a_square * b_square;
            want += bias.iter().zip(&x).map(|(b, x)| b * x).sum::<f64>();
            magnitudes += bias.iter().zip(&x).map(|(b, x)| (b * x).powi(2)).sum::<f64>();
            if let Some((t, index)) = residual {
                let start = t.strides.at(batch, row, 0);
                gather(t.dtype, before[index], start, t.strides.col, &mut across)?;
                want += across.iter().zip(&x).map(|(r, x)| r * x).sum::<f64>();
                magnitudes += across.iter().zip(&x).map(|(r, x)| (r * x).powi(2)).sum::<f64>();
            }
            gather(op.c.dtype, c, op.c.strides.at(batch, row, 0), op.c.strides.col, &mut across)?;
            if !want.is_finite() || across.iter().any(|c| c.is_nan() || c.abs() >= limit) {
                return Ok(None);
            }
            let got: f64 = across.iter().zip(&x).map(|(c, x)| c * x).sum();
            let rounding: f64 =
                across.iter().zip(&x).map(|(c, x)| x * x * ((c * ulp).powi(2) + tiny * tiny)).sum();
            let computed = 3.0 * tolerance.relative.powi(2) * magnitudes;
            let allowed = 6.0 * (computed + rounding).sqrt() + 1e-12 * magnitudes.sqrt() + tolerance.floor;
            let distance = (got - want).abs();
            if distance > 0.0 {
                verdict.worst = verdict.worst.max(distance / allowed);
            }
            if distance > allowed {
                verdict.passed = false;
                if verdict.report.len() < 8 {
                    let text = format!(
                        "Freivalds' check: row {row} of matrix {batch}: C x is {got:e}, A B x is {want:e}, {allowed:.3e} apart at most"
                    );
                    verdict.report.push(text);
                }
            }
        }
    }
    Ok(Some(verdict))
}

fn slot_values(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn sampled_attention(
    op: &Attention,
    before: &[&[u8]],
    out: &[u8],
    tolerance: &Tolerance,
    budget: usize,
    seed: u64,
) -> Result<Verification> {
    let mut random = Random::new(seed);
    let mut verdict = Verdict::default();
    let kv_len = slot_values(before[3]);
    let mut next = 4;
    let mut slot = |present: bool| {
        let found = if present { slot_values(before[next]) } else { Vec::new() };
        next += usize::from(present);
        found
    };
    let (offsets, table) = (slot(op.ragged), slot(op.kv.paging.is_some()));
    let group = op.q.inner / op.kv.kv_heads;
    let d = op.q.len;
    let rows_of = |b| slots::query_rows(b, op.q_len, op.q.outer, op.ragged.then_some(&offsets[..]));
    let queries: Vec<(usize, usize)> =
        (0..op.batch).flat_map(|b| (0..rows_of(b).len()).map(move |i| (b, i))).collect();
    let vectors_in_all = queries.len() * op.q.inner;
    let chosen = choose(vectors_in_all, (budget / d.max(1)).max(4), &mut random);
    let complete = chosen.len() == vectors_in_all;
    for vector in chosen {
        let (b, i) = queries[vector / op.q.inner];
        let (head, rows) = (vector % op.q.inner, rows_of(b));
        let (first, n) = (rows.start, rows.len());
        let length = if before[1].is_empty() { 0 } else { slots::length(kv_len[b], op.kv.capacity) };
        let keys = op.visible(i, n, length);
        let in_cache = head / group * op.kv.head_stride;
        let start = |j| slots::vector(&op.kv, b, j, &table).unwrap_or(0) + in_cache;
        let starts: Vec<usize> = keys.clone().map(start).collect();
        let length = starts.len();
        let mut args = vec![
            vectors(op.q_dtype, before[0], &[op.q.start(first + i, head)], 1, d)?,
            vectors(op.kv_dtype, before[1], &starts, 1, d)?,
            vectors(op.kv_dtype, before[2], &starts, 1, d)?,
            Values::new(vec![length as f64]),
        ];
        if op.sinks {
            args.push(vectors(DType::F32, before[next], &[head], 1, 1)?);
        }
        args.push(Values::new(vec![0.0; d]));
        // one query that sees exactly these keys
        let small = Attention {
            batch: 1,
            q_len: 1,
            ragged: false,
            q: Rows::grid(1, 1, d),
            out: Rows::grid(1, 1, d),
            kv: KvLayout::contiguous(1, length, d),
            causal: false,
            window: None,
            ..*op
        };
        Op::Attention(small).reference(&mut args);
        let Some(want) = args.pop() else { continue };
        let start = op.out.start(first + i, head);
        let got = vectors(op.out_dtype, out, &[start], 1, d)?;
        for (e, &got) in got.value.iter().enumerate() {
            let magnitude = want.magnitude.get(e).copied().unwrap_or(0.0);
            verdict.element("out", start + e, op.out_dtype, got, (want.value[e], magnitude), tolerance);
        }
    }
    Ok(Verification { complete, ..verdict.into() })
}

fn sampled_grouped(
    op: &GroupedMatMul,
    before: &[&[u8]],
    c: &[u8],
    tolerance: &Tolerance,
    budget: usize,
    seed: u64,
) -> Result<Verification> {
    let mut random = Random::new(seed);
    let mut verdict = Verdict::default();
    let (offsets, order) = (slot_values(before[2]), slot_values(before[3]));
    let offsets = &offsets[..op.experts + 1];
    let busy: Vec<_> = slots::Segments::new(offsets, op.rows).collect();
    // the position that names a row of C: the last one, should there be several
    let mut named = vec![None; op.c_rows];
    for position in busy.iter().flat_map(|(_, positions)| positions.clone()) {
        if let Some((_, row)) = op.rows_of(i64::from(order[position])) {
            named[row] = Some(position);
        }
    }
    let chosen = choose(busy.len(), 8, &mut random);
    let each = (budget / chosen.len().max(1)).max(4);
    for (expert, positions) in chosen.into_iter().map(|i| busy[i].clone()) {
        let side = (each as f64).sqrt().ceil() as usize;
        let cols = choose(op.n, side, &mut random);
        let rows = choose(positions.len(), side, &mut random);
        let rows = rows.into_iter().map(|r| positions.start + r).filter_map(|position| {
            op.rows_of(i64::from(order[position])).filter(|&(_, row)| named[row] == Some(position))
        });
        let rows: Vec<(usize, usize)> = rows.collect();
        let a_starts: Vec<usize> = rows.iter().map(|&(a, _)| op.a.strides.at(0, a, 0)).collect();
        let b_starts: Vec<usize> = cols.iter().map(|&col| op.b.strides.at(expert, 0, col)).collect();
        let mut args = vec![
            vectors(op.a.dtype, before[0], &a_starts, op.a.strides.col, op.k)?,
            vectors(op.b.dtype, before[1], &b_starts, op.b.strides.row, op.k)?,
        ];
        let mut small = MatMul::linear(rows.len(), cols.len(), op.k, op.a.dtype, op.b.dtype, op.c.dtype);
        small.epilogue.activation = op.activation;
        small.epilogue.bias = op.bias;
        if let Some(dtype) = op.bias {
            let starts: Vec<usize> = cols.iter().map(|col| expert * op.n + col).collect();
            args.push(vectors(dtype, before[4], &starts, 1, 1)?);
        }
        let at = |row: usize, col: usize| op.c.strides.at(0, rows[row].1, cols[col]);
        judge_product(&small, &args, at, c, tolerance, &mut verdict)?;
    }
    // rows that no position names keep their bytes
    let size = op.c.dtype.block_bytes();
    for row in (0..op.c_rows).filter(|&row| named[row].is_none()) {
        for col in 0..op.n {
            let index = op.c.strides.at(0, row, col);
            let bytes = index * size..(index + 1) * size;
            if before.last().and_then(|c| c.get(bytes.clone())) != c.get(bytes) {
                let got = vectors(op.c.dtype, c, &[index], 1, 1)?.value[0];
                verdict.overwritten("c", index, got);
            }
        }
    }
    Ok(Verification { complete: false, ..verdict.into() })
}
