//! The crate gemm, for f32.

use crate::{Ready, copies, ends, random, size};
use anyhow::{Result, ensure};
use serde_json::Value;

pub(crate) struct Gemm {
    threads: usize,
    m: usize,
    n: usize,
    k: usize,
    square: bool,
    a: Vec<f32>,
    b: Vec<Vec<f32>>,
    c: Vec<f32>,
    next: usize,
}

impl Gemm {
    pub(crate) fn new(threads: usize, case: &Value) -> Result<Self> {
        ensure!(case["op"] == "matmul" && case["dtype"] == "f32", "multiplies f32");
        let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
        let b = random(1, n * k);
        let (a, b, c) = (random(0, m * k), vec![b; copies(case, 4 * n * k)], vec![0.0; m * n]);
        Ok(Gemm { threads, m, n, k, square: case["form"] == "square", a, b, c, next: 0 })
    }
}

impl Ready for Gemm {
    fn call(&mut self) -> Result<()> {
        let (m, n, k) = (self.m, self.n, self.k);
        let (b_col, b_row) = if self.square { (1, n as isize) } else { (k as isize, 1) };
        let parallelism = match self.threads {
            1 => gemm::Parallelism::None,
            threads => gemm::Parallelism::Rayon(threads),
        };
        let (a, b, c) = (self.a.as_ptr(), self.b[self.next].as_ptr(), self.c.as_mut_ptr());
        // SAFETY: sizes and strides are those of the vectors; C is nobody else's.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c,
                1,
                n as isize,
                false,
                a,
                1,
                k as isize,
                b,
                b_col,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        self.next = (self.next + 1) % self.b.len();
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        Ok(ends(&self.c))
    }
}
