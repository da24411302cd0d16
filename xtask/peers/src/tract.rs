//! tract's products (tract-linalg), for f32: the kernel that it picks for the sizes. Weights are packed once where they are to be;
//! activations, and weights as they are, in each call, as its graphs pack what is no constant.

use crate::{Ready, copies, ends, random, size};
use anyhow::{Result, ensure};
use serde_json::Value;
use tract_data::internal::Tensor;
use tract_data::prelude::DatumType;
use tract_linalg::MmmDispatch;
use tract_linalg::mmm::{AsInputValue, FusedSpec, MMMInputValue, MatMatMul, Query, ScratchSpace};
use tract_linalg::multithread::{Executor, set_default_executor};

/// The weights' place among its operands: its `m` counts their rows, its `n` those of activations, as in its own layers.
pub(crate) struct Tract {
    kernel: Box<dyn MatMatMul>,
    packing: usize,
    scratch: Box<dyn ScratchSpace>,
    a: Tensor,
    b: Vec<Tensor>,
    /// Which axis of B counts outputs.
    outputs: usize,
    packed: Vec<Box<dyn MMMInputValue>>,
    c: Tensor,
    next: usize,
}

impl Tract {
    pub(crate) fn new(threads: usize, case: &Value) -> Result<Self> {
        ensure!(case["op"] == "matmul" && case["dtype"] == "f32", "is asked for products of f32");
        // with one thread its pools would be rayon's own, of all processors
        set_default_executor(match threads {
            1 => Executor::SingleThread,
            threads => Executor::multithread(threads),
        });
        let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
        let (shape, outputs) = if case["form"] == "square" { ([k, n], 1) } else { ([n, k], 0) };
        let query =
            Query { allow_extractor: false, ..Query::plain(DatumType::F32, Some(n), Some(k), Some(m)) };
        let (kernel, packing, _) =
            MmmDispatch::native().pick(&query).ok_or_else(|| anyhow::anyhow!("has no kernel"))?;
        let count = copies(case, 4 * n * k);
        let tensor = |shape: &[usize], values: Vec<f32>| Tensor::from_shape(shape, &values);
        let a = tensor(&[m, k], random(0, m * k))?;
        let b = tensor(&shape, random(1, n * k))?;
        let (mut plain, mut packed) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match case["packed"] == true {
                true => packed.push(kernel.packings()[packing].0.prepare_one(&b, 1 - outputs, outputs)?),
                false => plain.push(b.clone()),
            }
        }
        // SAFETY: the scratch is this kernel's.
        let scratch = unsafe { kernel.allocate_scratch_space() };
        let c = tensor(&[m, n], vec![0.0; m * n])?;
        Ok(Tract { kernel, packing, scratch, a, b: plain, outputs, packed, c, next: 0 })
    }
}

impl Ready for Tract {
    fn call(&mut self) -> Result<()> {
        let Tract { kernel, packing, scratch, a, b, outputs, packed, c, next } = self;
        let (weights, activations) = &kernel.packings()[*packing];
        let made = match b.get(*next) {
            Some(b) => Some(weights.prepare_one(b, 1 - *outputs, *outputs)?),
            None => None,
        };
        let activations = activations.prepare_one(a, 1, 0)?;
        let weights = made.as_ref().unwrap_or_else(|| &packed[*next]);
        let (m, n) = (c.shape()[0], c.shape()[1]);
        // SAFETY: both operands are packed as the kernel's packing of that number is, and C has as many rows and columns.
        unsafe {
            let store = kernel.c_view(Some(1), Some(0)).wrap(&c.view_mut());
            let (a, b) = (AsInputValue::Borrowed(&**weights), AsInputValue::Borrowed(&*activations));
            let product = FusedSpec::AddMatMul { a, b, packing: *packing };
            kernel.run_with_scratch_space(n, m, &mut **scratch, &[product, FusedSpec::Store(store)])?;
        }
        self.next = (self.next + 1) % self.b.len().max(self.packed.len());
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        // SAFETY: C is of f32.
        Ok(ends(unsafe { self.c.as_slice_unchecked::<f32>() }))
    }
}
