//! Bodies that are written once and compiled for every instruction set, and the tables' entries for them.

use crate::simd::{self, Simd};
use crate::spmd::{Args, Spmd, launch};
use crate::team::Lane;
use perjoule_kernels::kernel::Prepare;
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Numerics, Reason, Request, Result};

/// What a row does, apart from the instruction set: see [`Spmd`].
pub(crate) trait Body: Send + Sync + 'static {
    /// Bytes of scratch that all lanes share.
    fn scratch(&self) -> u64 {
        0
    }

    /// See [`Spmd::short`].
    fn short(&self) -> bool {
        false
    }

    /// See [`Spmd::divides`].
    fn divides(&self) -> bool {
        false
    }

    /// Runs this lane's part. Mark it `#[inline(always)]`, and call no closures in it that do vector arithmetic.
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args);
}

struct On<S, B> {
    s: S,
    body: B,
    short: bool,
}

struct Run<'a, B> {
    body: &'a B,
    lane: &'a Lane<'a>,
    args: &'a Args,
}

impl<B: Body> simd::Kernel for Run<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.body.run(s, self.lane, self.args);
    }
}

impl<S: Simd, B: Body> Spmd for On<S, B> {
    fn scratch(&self) -> u64 {
        self.body.scratch()
    }

    fn short(&self) -> bool {
        self.short
    }

    fn divides(&self) -> bool {
        self.body.divides()
    }

    fn run(&self, lane: &Lane<'_>, args: &Args) {
        self.s.vectorise(Run { body: &self.body, lane, args });
    }
}

/// The launchable form of `body` on `S`.
pub(crate) fn on<S: Simd>(request: &Request<'_>, body: impl Body) -> Result<Box<dyn Launch>> {
    let short = body.short();
    Ok(launch(request, On { s: simd::token::<S>()?, body, short }))
}

/// The error of a `prepare` that is called for another op: rows are looked up by the op's name, so that it does not happen.
pub(crate) fn other_op(op: &Op) -> perjoule_kernels::Error {
    perjoule_kernels::Error::Unsupported { what: "this kernel", why: format!("{op} is another op") }
}

/// Configuration of bodies that go through vectors in runs of [`super::run::LEN`] elements.
pub(crate) static RUNS: &[Config] = &[Config::tile("run256", &[super::run::LEN])];

/// How often a row for `S` computes what a scalar row computes once.
pub(crate) fn speed<S: Simd>() -> f32 {
    // array code on the baseline's short vectors gains little
    if S::LANES == simd::Portable::LANES && S::NAME == simd::Portable::NAME { 2.0 } else { S::LANES as f32 }
}

fn refuse<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    simd::refusal::<S>(candidate.info)
}

/// Moving bytes and computing overlap only in part: their sum keeps the order of rows that move the same bytes.
fn stream_cost<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    1e-6 + op.bytes() as f32 / 20e9 + (op.flops() as f32 + op.bytes() as f32 / 4.0) / (1e9 * speed::<S>())
}

/// A row that runs everything its op allows, on `S`, going through its operands once or twice.
pub(crate) const fn row<S: Simd>(
    name: &'static str,
    op: &'static str,
    numerics: fn(&Candidate<'_>) -> Numerics,
    prepare: Prepare,
) -> Kernel {
    Kernel::new(name, op, stream_cost::<S>, prepare)
        .with_configs(RUNS)
        .with_numerics(numerics)
        .with_reject(refuse::<S>)
}
