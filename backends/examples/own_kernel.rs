//! A kernel row of your own, added from outside: it is listed, chosen, checked and launched like the rows of the backend.
//!
//! `cargo run --release -p perjoule --example own_kernel`

use perjoule::cpu::spmd::{self, Args, Spmd};
use perjoule::cpu::team::Lane;
use perjoule::kernels::{Candidate, Launch, Reason, Request};
use perjoule::{DType, Kernel, Op, Result, Tensor, ops};

/// The row: everything the library knows of the kernel. The name says what it is, the functions say how fast, how, and when. A cost
/// of 0 is cheaper than any other row's: it will be chosen wherever it does not refuse.
static ROW: Kernel = Kernel::new("add_f32_1_cpu_example", "add", |_| 0.0, prepare).with_reject(reject);

fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Add(op) = candidate.op else { return Some(Reason::new("runs add only")) };
    if op.dtype != DType::F32 {
        return Some(Reason::new("runs f32 only"));
    }
    let dense = op.a.is_dense() && op.b.is_dense() && op.out.is_dense();
    (!dense).then(|| Reason::new("needs dense operands"))
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    Ok(spmd::launch(request, AddF32))
}

struct AddF32;

impl Spmd for AddF32 {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        let (a, b) = (args.read::<f32>(0), args.read::<f32>(1));
        let (range, out) = args.split_out::<f32>(lane, 2, 16);
        for ((out, a), b) in out.iter_mut().zip(&a[range.clone()]).zip(&b[range]) {
            *out = a + b;
        }
    }
}

fn main() -> Result<()> {
    let cpu = perjoule::open("cpu")?;
    cpu.register(&ROW)?;
    let a = Tensor::from_slice(&cpu, &[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
    let sum = ops::add(&a, &a)?;
    assert_eq!(sum.to_vec::<f32>()?, [2.0, 4.0, 6.0, 8.0]);

    let op = Op::Add(perjoule::kernels::op::Add::dense(2, 2, DType::F32));
    for verdict in cpu.explain(&op)? {
        match verdict.outcome {
            Ok(cost) => println!("{:40} {:.2e} s", verdict.choice.kernel.name, cost.seconds),
            Err(reason) => println!("{:40} refuses: {reason}", verdict.choice.kernel.name),
        }
    }
    assert_eq!(cpu.select(&op, &[])?.kernel.name, ROW.name);
    Ok(())
}
