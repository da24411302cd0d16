//! One step of a model as a sequence of launches: planned once for a shape, recorded, replayed.
//!
//! A step takes `q_len` new tokens of each of `batch` sequences. Everything that changes from step to step lies in slots (ids, lengths,
//! positions), which the step itself advances, so that a recorded step is replayed without host work.

use std::sync::Arc;

use perjoule::{Arg, Buffer, DType, Device, Graph, Op, Prepared, Stream};
use perjoule_kernels::op::{
    Advance, Argmax, Attention, Combine, Embed, Epilogue, Gated, HeadNorm, KvAppend, MatMul,
    QkNormRopeAppend, Residual, RmsNorm, Rope, Route, Tensor2,
};
use perjoule_kernels::plan::{EXTERNAL, plan};
use perjoule_kernels::{Alignment, KvLayout, Matrix, PackFormat, Query, Rows};

use crate::error::{Error, Result};
use crate::load::{Layer, Linear, Model, gated_matmul, grouped};

/// What a step computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct StepShape {
    /// Sequences.
    pub(crate) batch: usize,
    /// New tokens of each.
    pub(crate) q_len: usize,
    /// Which logits are computed, and what becomes of them.
    pub(crate) output: Output,
}

/// Which logits a step computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Output {
    /// None: a chunk of a prompt that is not its last.
    Nothing,
    /// Those of the last token of each sequence.
    Last,
    /// Those of the last token, and the largest becomes the next step's id.
    Greedy,
    /// Those of every token.
    All,
}

/// What a session owns and every step of it reads or writes.
pub(crate) struct State {
    /// `[batch * q_len]` of the longest step; greedy steps write `[batch]`.
    pub(crate) ids: Buffer,
    /// `[batch]`
    pub(crate) kv_len: Buffer,
    /// `[batch * q_len]` of the longest step.
    pub(crate) positions: Buffer,
    /// K and V of each layer.
    pub(crate) caches: Vec<(Buffer, Buffer)>,
    pub(crate) layout: KvLayout,
    /// f32 `[batch, vocab]`
    pub(crate) logits: Buffer,
}

/// A planned step.
pub(crate) struct Step {
    nodes: Vec<Node>,
    scratch: u64,
    /// f32 `[batch * q_len, vocab]` where all logits are wanted.
    pub(crate) all_logits: Option<Buffer>,
    graph: Option<Arc<dyn Graph>>,
}

struct Node {
    prepared: Arc<Prepared>,
    args: Vec<Buffer>,
}

/// A value of the step: an activation that the planner places, seen from some byte on.
#[derive(Clone, Copy)]
struct Value {
    id: u32,
    at: u64,
}

/// The residual stream: `x`, or `x + joining` where the norm that reads it next is left to add, which saves a launch.
#[derive(Clone, Copy)]
struct Hidden {
    x: Value,
    joining: Option<Value>,
}

impl From<Value> for Hidden {
    fn from(x: Value) -> Hidden {
        Hidden { x, joining: None }
    }
}

impl Hidden {
    /// Seen from some byte on.
    fn seen_from(self, at: u64) -> Hidden {
        let from = |value: Value| Value { at, ..value };
        Hidden { x: from(self.x), joining: self.joining.map(from) }
    }
}

enum Place {
    Value(Value),
    Buffer(Buffer),
}

impl From<Value> for Place {
    fn from(value: Value) -> Place {
        Place::Value(value)
    }
}

impl From<&Buffer> for Place {
    fn from(buffer: &Buffer) -> Place {
        Place::Buffer(buffer.clone())
    }
}

struct Builder<'m> {
    model: &'m Model,
    device: &'m Device,
    launches: Vec<(Arc<Prepared>, Vec<Place>)>,
    values: u32,
}

impl Step {
    /// Plans a step: chooses and prepares every launch, places the activations.
    pub(crate) fn new(model: &Model, state: &State, shape: StepShape) -> Result<Step> {
        let mut builder = Builder { model, device: &model.device, launches: Vec::new(), values: 0 };
        let all_logits = builder.step(state, shape)?;
        builder.finish(all_logits)
    }

    /// Bytes of scratch that its launches need.
    pub(crate) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Whether it was run before, and is replayed from now on.
    pub(crate) fn is_recorded(&self) -> bool {
        self.graph.is_some()
    }

    /// Launches that it is made of.
    pub(crate) fn launches(&self) -> usize {
        self.nodes.len()
    }

    /// Runs it: records it the first time, replays it afterwards. The stream has [`Step::scratch`] reserved.
    pub(crate) fn run(&mut self, stream: &mut dyn Stream) -> Result<()> {
        let graph = match &self.graph {
            Some(graph) => graph,
            None => {
                let nodes = &self.nodes;
                let graph = stream.capture(&mut |stream| {
                    for node in nodes {
                        let mut args: Vec<Arg<'_>> = node.args.iter().map(Arg::Buf).collect();
                        node.prepared.launch(stream, &mut args)?;
                    }
                    Ok(())
                })?;
                self.graph.insert(graph)
            }
        };
        Ok(stream.replay(graph)?)
    }
}

impl Builder<'_> {
    fn value(&mut self) -> Value {
        let id = self.values;
        self.values += 1;
        Value { id, at: 0 }
    }

    fn launch(&mut self, op: impl Into<Op>, args: Vec<Place>) -> Result<()> {
        self.launch_packed(op, None, args)
    }

    fn launch_packed(
        &mut self,
        op: impl Into<Op>,
        pack: Option<&'static PackFormat>,
        args: Vec<Place>,
    ) -> Result<()> {
        let most = self.device.info().arena.align;
        let address = |place: &Place| match place {
            // from the beginning of a place, which is aligned to that
            Place::Value(value) => value.at,
            Place::Buffer(buffer) => buffer.address(),
        };
        let each = args.iter().enumerate();
        let alignment = each.fold(Alignment::default(), |all, (i, place)| all.with(i, address(place), most));
        let prepared = self.device.prepare_packed(Query { op: &op.into(), alignment }, pack)?;
        self.launches.push((prepared, args));
        Ok(())
    }

    fn finish(self, all_logits: Option<Buffer>) -> Result<Step> {
        let ids: Vec<Vec<u32>> = self
            .launches
            .iter()
            .map(|(_, args)| {
                args.iter()
                    .map(|place| match place {
                        Place::Value(value) => value.id,
                        Place::Buffer(_) => EXTERNAL,
                    })
                    .collect()
            })
            .collect();
        let launches: Vec<(&Prepared, &[u32])> = self
            .launches
            .iter()
            .zip(&ids)
            .map(|((prepared, _), ids)| (&**prepared, ids.as_slice()))
            .collect();
        let places = plan(&launches, self.device.info().arena)?;
        let mut pools: Vec<u64> = vec![0; usize::from(self.device.info().arena.pools.max(1))];
        for place in &places {
            let pool = &mut pools[usize::from(place.pool)];
            *pool = (*pool).max(place.at + place.bytes);
        }
        let pools = pools
            .iter()
            .map(|bytes| self.device.alloc(*bytes))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut scratch = 0;
        let mut nodes = Vec::with_capacity(self.launches.len());
        for (prepared, args) in self.launches {
            scratch = scratch.max(prepared.scratch());
            let args = args
                .into_iter()
                .zip(prepared.operands())
                .map(|(place, operand)| match place {
                    Place::Value(value) => {
                        // within the value's own place, not merely within the pool
                        let place = places[value.id as usize];
                        pools[usize::from(place.pool)]
                            .view(place.at, place.bytes)?
                            .view(value.at, operand.bytes)
                    }
                    Place::Buffer(buffer) => Ok(buffer),
                })
                .collect::<std::result::Result<Vec<_>, _>>()?;
            nodes.push(Node { prepared, args });
        }
        Ok(Step { nodes, scratch, all_logits, graph: None })
    }

    /// The whole step; gives the buffer of all logits where they are wanted.
    fn step(&mut self, state: &State, shape: StepShape) -> Result<Option<Buffer>> {
        let model = self.model;
        let geometry = &model.geometry;
        let (dtype, hidden) = (model.activations, geometry.hidden);
        let StepShape { batch, q_len, output } = shape;
        let tokens = batch * q_len;
        self.launch(Advance::uniform(batch, q_len), vec![(&state.kv_len).into(), (&state.positions).into()])?;
        let embedded = self.value();
        let mut embed = Embed::dense(tokens, geometry.vocab, hidden, model.embed_dtype, dtype);
        embed.scale = geometry.embedding_scale_in(model.embed_dtype);
        self.launch(embed, vec![(&state.ids).into(), (&model.embed).into(), embedded.into()])?;
        let mut x = Hidden::from(embedded);
        for (index, layer) in model.layers.iter().enumerate() {
            let attended = self.attention(state, index, layer, x, batch, q_len)?;
            x = self.feed_forward(layer, attended, tokens)?;
        }
        let (rows, first) = match output {
            Output::Nothing => return Ok(None),
            Output::All => (Rows::dense(tokens, hidden), 0),
            // the last token of each sequence
            Output::Last | Output::Greedy => {
                (Rows::dense(batch, hidden).with_outer_stride(q_len * hidden), (q_len - 1) * hidden)
            }
        };
        let x = x.seen_from(first as u64 * dtype.block_bytes() as u64);
        let (_, normed) = self.norm(rows, x, &model.final_norm)?;
        let all = match output {
            Output::All => Some(self.device.alloc(tokens as u64 * geometry.vocab as u64 * 4)?),
            _ => None,
        };
        let logits = all.as_ref().unwrap_or(&state.logits);
        self.linear(&model.head, rows.outer, normed, Place::from(logits), DType::F32, None)?;
        if output == Output::Greedy {
            let op = Argmax { x: Rows::dense(batch, geometry.vocab), dtype: DType::F32 };
            self.launch(op, vec![logits.into(), (&state.ids).into()])?;
        }
        Ok(all)
    }

    /// The vectors `rows` of `hidden` with what joins them, and their RMS norm in dense vectors.
    fn norm(&mut self, rows: Rows, hidden: Hidden, weight: &Buffer) -> Result<(Value, Value)> {
        let geometry = &self.model.geometry;
        let dense = Rows::grid(rows.outer, rows.inner, rows.len);
        let Hidden { x, joining } = hidden;
        let op = RmsNorm {
            x: rows,
            x_dtype: self.model.activations,
            weight: DType::F32,
            weight_offset: geometry.norm_weight_offset,
            eps: geometry.norm_eps as f32,
            residual: joining.map(|_| Residual { rows, sum: dense }),
            out: dense,
            out_dtype: self.model.activations,
        };
        let (sum, out) = (joining.map(|_| self.value()), self.value());
        let mut args = vec![x.into()];
        args.extend(joining.map(Place::from));
        args.push(weight.into());
        args.extend(sum.map(Place::from));
        args.push(out.into());
        self.launch(op, args)?;
        Ok((sum.unwrap_or(x), out))
    }

    /// The same of all vectors.
    fn norm_all(&mut self, tokens: usize, hidden: Hidden, weight: &Buffer) -> Result<(Value, Value)> {
        self.norm(Rows::dense(tokens, self.model.geometry.hidden), hidden, weight)
    }

    /// `x W^T + bias`
    fn product(&self, linear: &Linear, rows: usize, out_dtype: DType) -> MatMul {
        let op = MatMul::linear(rows, linear.n, linear.k, self.model.activations, linear.dtype, out_dtype);
        let bias = linear.bias.as_ref().map(|_| DType::F32);
        MatMul { policy: linear.policy, epilogue: Epilogue { bias, ..Epilogue::default() }, ..op }
    }

    /// `out = x W^T + bias (+ residual)`
    fn linear(
        &mut self,
        linear: &Linear,
        rows: usize,
        x: Value,
        out: Place,
        out_dtype: DType,
        residual: Option<Value>,
    ) -> Result<()> {
        let dense = Tensor2 { dtype: self.model.activations, strides: Matrix::row_major(rows, linear.n) };
        let mut op = self.product(linear, rows, out_dtype);
        op.epilogue.residual = residual.map(|_| dense);
        let mut args = vec![x.into(), (&linear.weight).into()];
        args.extend(linear.bias.as_ref().map(Place::from));
        args.extend(residual.map(Place::from));
        args.push(out);
        self.launch_packed(op, linear.pack, args)
    }

    /// Everything up to and with what joins the residual stream first.
    fn attention(
        &mut self,
        state: &State,
        index: usize,
        layer: &Layer,
        hidden: Hidden,
        batch: usize,
        q_len: usize,
    ) -> Result<Hidden> {
        let model = self.model;
        let g = &model.geometry;
        let dtype = model.activations;
        let tokens = batch * q_len;
        let (heads, kv_heads, d) = (g.heads, g.kv_heads, g.head_dim);
        let (x, normed) = self.norm_all(tokens, hidden, &layer.attention_norm)?;
        let widths = [heads * d, kv_heads * d, kv_heads * d];
        let [(q, q_width), (k, k_width), (v, v_width)] =
            self.slices(&layer.qkv, widths, |builder, linear| {
                let out = builder.value();
                builder.linear(linear, tokens, normed, out.into(), dtype, None)?;
                Ok(out)
            })?;
        let fused = |heads: usize, width| Rows::grid(tokens, heads, d).with_outer_stride(width);
        let rope = &g.ropes[g.layers[index].rope];
        let rotation = |heads: usize| Rope {
            rotary_dim: rope.rotary_dim,
            scaling: rope.scaling,
            ..Rope::dense(tokens, heads, d, dtype, rope.theta)
        };
        let norm =
            HeadNorm { weight: DType::F32, weight_offset: g.norm_weight_offset, eps: g.norm_eps as f32 };
        let op = QkNormRopeAppend {
            q: fused(heads, q_width),
            q_dtype: dtype,
            q_norm: layer.q_norm.as_ref().map(|_| norm),
            k_norm: layer.k_norm.as_ref().map(|_| norm),
            q_rope: rotation(heads),
            k_rope: rotation(kv_heads),
            append: KvAppend {
                src_k: fused(kv_heads, k_width),
                src_v: fused(kv_heads, v_width),
                kv_dtype: model.kv_dtype,
                ..KvAppend::dense(batch, q_len, state.layout, dtype)
            },
        };
        let (k_cache, v_cache) = &state.caches[index];
        let queries = self.value();
        let mut args: Vec<Place> = vec![q.into(), k.into(), v.into()];
        args.extend([&layer.q_norm, &layer.k_norm].into_iter().flatten().map(Place::from));
        args.extend([&state.positions, &state.kv_len, k_cache, v_cache].map(Place::from));
        args.push(queries.into());
        self.launch(op, args)?;
        let mut op = Attention::causal(batch, q_len, heads, state.layout, dtype);
        op.kv_dtype = model.kv_dtype;
        op.scale = g.attention_scale as f32;
        op.soft_cap = g.attention_softcap.map(|c| c as f32);
        op.policy = layer.o.policy;
        op.window = g.layers[index].attention.window();
        op.sinks = layer.sinks.is_some();
        let out = self.value();
        let mut args: Vec<Place> =
            vec![queries.into(), k_cache.into(), v_cache.into(), (&state.kv_len).into()];
        args.extend(layer.sinks.as_ref().map(Place::from));
        args.push(out.into());
        self.launch(op, args)?;
        self.project(&layer.o, layer.post_attention_norm.as_ref(), tokens, out, x)
    }

    /// `x + W y`, or `x + norm(W y)` where the model normalises what joins the residual stream.
    fn project(
        &mut self,
        linear: &Linear,
        norm: Option<&Buffer>,
        tokens: usize,
        y: Value,
        x: Value,
    ) -> Result<Hidden> {
        let out = self.value();
        let residual = norm.is_none().then_some(x);
        self.linear(linear, tokens, y, out.into(), self.model.activations, residual)?;
        self.joined(norm, tokens, out, x)
    }

    /// The residual stream behind a block that gave `y`: the sum already, or what is normalised before it joins `x`.
    fn joined(&mut self, norm: Option<&Buffer>, tokens: usize, y: Value, x: Value) -> Result<Hidden> {
        let Some(weight) = norm else { return Ok(y.into()) };
        let (_, normed) = self.norm_all(tokens, y.into(), weight)?;
        Ok(Hidden { x, joining: Some(normed) })
    }

    fn feed_forward(&mut self, layer: &Layer, hidden: Hidden, tokens: usize) -> Result<Hidden> {
        let dtype = self.model.activations;
        let (x, normed) = self.norm_all(tokens, hidden, &layer.ffn_norm)?;
        if layer.router.is_some() {
            return self.experts(layer, x, normed, tokens);
        }
        let activated = match layer.gate_up.as_slice() {
            [gate, up] if gate.dtype == up.dtype && gate.bias.is_some() == up.bias.is_some() => {
                self.gated_matmul(gate, up, tokens, normed)?
            }
            products => {
                let ffn = layer.down.k;
                let gate_up = self.slices(products, [ffn, ffn], |builder, linear| {
                    let out = builder.value();
                    builder.linear(linear, tokens, normed, out.into(), dtype, None)?;
                    Ok(out)
                })?;
                self.gated(tokens, ffn, gate_up)?
            }
        };
        self.project(&layer.down, layer.post_ffn_norm.as_ref(), tokens, activated, x)
    }

    /// The activation of both products, neither of which is stored.
    fn gated_matmul(&mut self, gate: &Linear, up: &Linear, tokens: usize, x: Value) -> Result<Value> {
        let part = self.product(gate, tokens, self.model.activations);
        let op = gated_matmul(part, self.model.geometry.activation);
        let out = self.value();
        let mut args = vec![x.into(), (&gate.weight).into(), (&up.weight).into()];
        args.extend([gate, up].iter().filter_map(|linear| linear.bias.as_ref()).map(Place::from));
        args.push(out.into());
        self.launch_packed(op, gate.pack, args)?;
        Ok(out)
    }

    /// The activation of gates and ups, each with the width of the rows in which it lies.
    fn gated(&mut self, rows: usize, ffn: usize, [gate, up]: [(Value, usize); 2]) -> Result<Value> {
        let dtype = self.model.activations;
        let half = |width| Rows::dense(rows, ffn).with_outer_stride(width);
        let kind = self.model.geometry.activation;
        let op = Gated {
            gate: half(gate.1),
            up: half(up.1),
            dtype,
            out: Rows::dense(rows, ffn),
            out_dtype: dtype,
            kind,
        };
        let out = self.value();
        self.launch(op, vec![gate.0.into(), up.0.into(), out.into()])?;
        Ok(out)
    }

    /// The parts of `widths` that products have in their rows, one behind the other, each with the width of the rows in which it lies.
    fn slices<const N: usize>(
        &mut self,
        linears: &[Linear],
        widths: [usize; N],
        mut product: impl FnMut(&mut Self, &Linear) -> Result<Value>,
    ) -> Result<[(Value, usize); N]> {
        let size = self.model.activations.block_bytes() as u64;
        let mut products = linears.iter();
        let mut current: Option<(Value, usize)> = None;
        let mut first = 0;
        let mut parts = [(Value { id: 0, at: 0 }, 0); N];
        for (part, width) in parts.iter_mut().zip(widths) {
            let (value, row) = match current.filter(|(_, row)| first < *row) {
                Some(fused) => fused,
                None => {
                    let Some(linear) = products.next() else {
                        return Err(Error::Config(vec!["a layer lacks a product".into()]));
                    };
                    first = 0;
                    *current.insert((product(self, linear)?, linear.n))
                }
            };
            *part = (Value { id: value.id, at: first as u64 * size }, row);
            first += width;
        }
        Ok(parts)
    }

    fn experts(&mut self, layer: &Layer, x: Value, normed: Value, tokens: usize) -> Result<Hidden> {
        let (Some(router), Some(moe)) = (&layer.router, self.model.geometry.moe) else {
            return Err(Error::Config(vec!["a layer of experts without experts".into()]));
        };
        let dtype = self.model.activations;
        let hidden = self.model.geometry.hidden;
        // the router's logits decide: they are not rounded to the activations' type
        let logits = self.value();
        self.linear(router, tokens, normed, logits.into(), DType::F32, None)?;
        let op =
            Route { tokens, experts: moe.experts, top_k: moe.top_k, dtype: DType::F32, order: moe.routing };
        let (weights, chosen, offsets, sorted) = (self.value(), self.value(), self.value(), self.value());
        self.launch(op, vec![logits.into(), weights.into(), chosen.into(), offsets.into(), sorted.into()])?;
        let gate_up = self.slices(&layer.gate_up, [moe.ffn, moe.ffn], |builder, linear| {
            builder.grouped(linear, tokens, moe.top_k, true, normed, offsets, sorted)
        })?;
        let activated = self.gated(tokens * moe.top_k, moe.ffn, gate_up)?;
        let down = self.grouped(&layer.down, tokens, moe.top_k, false, activated, offsets, sorted)?;
        let out = self.value();
        let post = layer.post_ffn_norm.as_ref();
        let op = Combine {
            tokens,
            top_k: moe.top_k,
            x: Rows::dense(tokens * moe.top_k, hidden),
            dtype,
            out: Rows::dense(tokens, hidden),
            out_dtype: dtype,
            residual: post.is_none(),
        };
        let mut args: Vec<Place> = vec![down.into(), weights.into()];
        args.extend(post.is_none().then(|| x.into()));
        args.push(out.into());
        self.launch(op, args)?;
        self.joined(post, tokens, out, x)
    }

    /// One product for each token and expert it visits; `shared` when the token's visits read the same row.
    #[allow(clippy::too_many_arguments, reason = "two call sites; the operands of one op")]
    fn grouped(
        &mut self,
        linear: &Linear,
        tokens: usize,
        top_k: usize,
        shared: bool,
        x: Value,
        offsets: Value,
        sorted: Value,
    ) -> Result<Value> {
        let rows = tokens * top_k;
        let mut op = grouped(rows, linear.n, linear.k, linear.experts, self.model.activations, linear.dtype);
        if shared {
            (op.a_rows, op.a_divisor) = (tokens, top_k);
            op.a.strides = Matrix::row_major(tokens, linear.k);
        }
        op.bias = linear.bias.as_ref().map(|_| DType::F32);
        op.policy = linear.policy;
        let out = self.value();
        let mut args = vec![x.into(), (&linear.weight).into(), offsets.into(), sorted.into()];
        args.extend(linear.bias.as_ref().map(Place::from));
        args.push(out.into());
        self.launch_packed(op, linear.pack, args)?;
        Ok(out)
    }
}
