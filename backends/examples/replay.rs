//! Below the calls: plans prepared once, launched on a stream of one's own into buffers of one's own, recorded, and replayed. Each
//! replay decodes one token; nothing is allocated and nothing is looked up.
//!
//! `cargo run --release -p perjoule --example replay`

use perjoule::kernels::op::{Add, Advance, Argmax, Attention, Embed, KvAppend, MatMul, RmsNorm, Rope};
use perjoule::kernels::{KvLayout, Rows};
use perjoule::ops::{self, KvCache, Weight};
use perjoule::{Arg, Buffer, DType, Device, Op, Prepared, Result, Stream, Tensor};
use std::sync::Arc;

const F32: DType = DType::F32;
const VOCAB: usize = 96;
const HEADS: usize = 4;
const DIM: usize = 16;
const HIDDEN: usize = HEADS * DIM;
const CAPACITY: usize = 64;
const TOKENS: usize = 40;
const THETA: f64 = 10_000.0;
const EPS: f32 = 1e-6;
const FIRST: i32 = 7;

/// A launch: what was prepared, and its arguments in order.
type Node = (Arc<Prepared>, Vec<Buffer>);

/// The plain weights of a toy model of one layer: embedding and head `[vocab, hidden]`, q/k/v `[3 hidden, hidden]`.
struct Model {
    embedding: Tensor,
    qkv: Tensor,
    head: Tensor,
    norm: Tensor,
}

fn random(device: &Device, seed: u32, shape: [usize; 2]) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(2654435761);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| next()).collect();
    Tensor::from_slice(device, &values, shape)
}

/// Launches in the making.
struct Builder<'d> {
    device: &'d Device,
    nodes: Vec<Node>,
}

impl Builder<'_> {
    fn floats(&self, count: usize) -> Result<Buffer> {
        self.device.alloc(4 * count as u64)
    }

    fn add(&mut self, op: impl Into<Op>, args: &[&Buffer]) -> Result<()> {
        let args = args.iter().map(|&buffer| buffer.clone()).collect();
        self.nodes.push((self.device.prepare(op)?, args));
        Ok(())
    }

    /// `out = x w^T`. The row that is cheapest decides how its weight is packed.
    fn linear(&mut self, x: &Buffer, weight: &Tensor, out: &Buffer) -> Result<()> {
        let (n, k) = (weight.shape()[0], weight.shape()[1]);
        let op = Op::from(MatMul::linear(1, n, k, F32, F32, F32));
        let choice = self.device.select(&op, &[])?;
        let mut packed = weight.buffer().clone();
        if let Some(format) = choice.pack {
            packed = self.device.pack_constant(&op.constants()[0], format, weight.buffer())?;
        }
        let plan = Arc::new(self.device.prepare_choice(&op, choice)?);
        self.nodes.push((plan, vec![x.clone(), packed, out.clone()]));
        Ok(())
    }
}

/// One step as launches over buffers: `id` in, the next `id` out. All that changes lies in slots on the device.
fn step(device: &Device, model: &Model, id: &Buffer) -> Result<Vec<Node>> {
    let mut b = Builder { device, nodes: Vec::new() };
    let (kv_len, position) = (b.floats(1)?, b.floats(1)?);
    let (x, normed, qkv) = (b.floats(HIDDEN)?, b.floats(HIDDEN)?, b.floats(3 * HIDDEN)?);
    let (k_cache, v_cache) = (b.floats(CAPACITY * HIDDEN)?, b.floats(CAPACITY * HIDDEN)?);
    let (attended, sum, logits) = (b.floats(HIDDEN)?, b.floats(HIDDEN)?, b.floats(VOCAB)?);
    let part = |i: usize| qkv.view(4 * (i * HIDDEN) as u64, 4 * HIDDEN as u64);
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let (table, weight) = (model.embedding.buffer(), model.norm.buffer());
    let layout = KvLayout::contiguous(HEADS, CAPACITY, DIM);
    let norm = RmsNorm { eps: EPS, ..RmsNorm::dense(1, HIDDEN, F32) };
    let rope = Rope::dense(1, HEADS, DIM, F32, THETA);

    b.add(Advance::uniform(1, 1), &[&kv_len, &position])?;
    b.add(Embed::dense(1, VOCAB, HIDDEN, F32, F32), &[id, table, &x])?;
    b.add(norm, &[&x, weight, &normed])?;
    b.linear(&normed, &model.qkv, &qkv)?;
    b.add(rope, &[&position, &q])?;
    b.add(rope, &[&position, &k])?;
    b.add(KvAppend::dense(1, 1, layout, F32), &[&k, &v, &kv_len, &k_cache, &v_cache])?;
    b.add(Attention::causal(1, 1, HEADS, layout, F32), &[&q, &k_cache, &v_cache, &kv_len, &attended])?;
    b.add(Add::dense(1, HIDDEN, F32), &[&x, &attended, &sum])?;
    b.add(norm, &[&sum, weight, &normed])?;
    b.linear(&normed, &model.head, &logits)?;
    b.add(Argmax { x: Rows::dense(1, VOCAB), dtype: F32 }, &[&logits, id])?;
    Ok(b.nodes)
}

fn launch(stream: &mut dyn Stream, nodes: &[Node]) -> Result<()> {
    for (plan, buffers) in nodes {
        let mut args: Vec<Arg<'_>> = buffers.iter().map(Arg::from).collect();
        plan.launch(stream, &mut args)?;
    }
    Ok(())
}

/// The same tokens by single calls.
fn by_calls(device: &Device, model: &Model) -> Result<Vec<i32>> {
    let qkv = Weight::pack(&model.qkv, F32, &[1])?;
    let head = Weight::pack(&model.head, F32, &[1])?;
    let mut cache = KvCache::new(device, 1, HEADS, CAPACITY, DIM, F32)?;
    let mut ids = Vec::new();
    let mut id = Tensor::from_slice(device, &[FIRST], [1])?;
    for _ in 0..TOKENS {
        let x = ops::embed(&model.embedding, &id, F32)?;
        let normed = ops::rms_norm(&x, &model.norm, EPS)?;
        let qkv = ops::linear(&normed, &qkv).run()?.reshape([1, 1, 3 * HEADS, DIM])?;
        let (q, k, v) = (qkv.slice(2, ..HEADS)?, qkv.slice(2, HEADS..2 * HEADS)?, qkv.slice(2, 2 * HEADS..)?);
        cache.advance(1)?;
        ops::rope(&q, cache.positions(), THETA)?;
        ops::rope(&k, cache.positions(), THETA)?;
        cache.append(&k, &v)?;
        let attended = ops::attention_cached(&q, &cache).run()?.reshape([1, HIDDEN])?;
        let normed = ops::rms_norm(&ops::add(&x, &attended)?, &model.norm, EPS)?;
        id = ops::argmax(&ops::linear(&normed, &head).run()?)?;
        ids.extend(id.to_vec::<i32>()?);
    }
    Ok(ids)
}

fn main() -> Result<()> {
    run(&perjoule::open("cpu")?)
}

/// On any device.
pub(crate) fn run(device: &Device) -> Result<()> {
    let model = Model {
        embedding: random(device, 1, [VOCAB, HIDDEN])?,
        qkv: random(device, 2, [3 * HIDDEN, HIDDEN])?,
        head: random(device, 3, [VOCAB, HIDDEN])?,
        norm: Tensor::from_slice(device, &[1.0f32; HIDDEN], [HIDDEN])?,
    };

    let id = device.alloc(4)?;
    let nodes = step(device, &model, &id)?;
    let mut stream = device.stream()?;
    // the weights were written and packed on the default stream
    stream.follow(&mut *device.default_stream()?)?;
    // once, for the launch that needs most
    stream.reserve(nodes.iter().map(|(plan, _)| plan.scratch()).max().unwrap_or(0))?;
    stream.write(&id, &FIRST.to_le_bytes())?;
    let graph = stream.capture(&mut |stream| launch(stream, &nodes))?;
    let mut ids = Vec::new();
    for _ in 0..TOKENS {
        stream.replay(&graph)?;
        let bytes = stream.read(&id).wait()?;
        ids.extend(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)));
    }

    println!("{} launches a token, {TOKENS} tokens: {:?} ..", graph.launches(), &ids[..10]);
    assert_eq!(ids, by_calls(device, &model)?, "recorded launches and single calls choose the same tokens");
    Ok(())
}
