//! burn's kernels for WebGPU, timed on command like those of `perjoule-peers`: products as its tuner chooses, attention by its flash kernel.
//!
//! `perjoule-peers-burn burn THREADS`; it takes the adapter that Vulkan names first, a GPU before a processor.

#[path = "../../src/protocol.rs"]
mod protocol;

use anyhow::{Result, anyhow, ensure};
use burn_backend::ops::{AttentionModuleOptions, FloatTensorOps};
use burn_backend::{Backend, BackendTypes, TensorData};
use burn_cubecl::CubeBackend as Burn;
use burn_cubecl::kernel::attention::{AttentionStrategy, attention};
use cubecl::Device;
use cubecl::wgpu::WgpuDeviceKind;
use protocol::{Ready, ends, random, serve, size};
use serde_json::Value;

type Tensor = <Burn as BackendTypes>::FloatTensorPrimitive;

fn main() -> Result<()> {
    let software = std::env::var_os("PERJOULE_PEERS_SOFTWARE").is_some();
    let kind = if software { WgpuDeviceKind::Cpu } else { WgpuDeviceKind::DefaultDevice };
    let device = Device::vulkan(kind).map_err(|e| anyhow!("{e:?}"))?;
    serve(&mut |case| Ok(Box::new(Call::new(&device, case)?)))
}

enum Inputs {
    Product([Tensor; 2]),
    /// Queries, keys and values, and the shape of the queries: sequences, heads, tokens, elements.
    Attention([Tensor; 3], [usize; 4]),
}

struct Call {
    device: Device,
    inputs: Inputs,
    out: Option<Tensor>,
}

impl Call {
    fn new(device: &Device, case: &Value) -> Result<Self> {
        ensure!(case["dtype"] == "f32", "is asked for f32 alone");
        let tensor = |values: Vec<f32>, shape: &[usize]| {
            Burn::float_from_data(TensorData::new(values, shape.to_vec()), device)
        };
        let inputs = match case["op"].as_str() {
            Some("attention") => {
                let [b, q, kv, heads, kv_heads, d] =
                    ["b", "q", "kv", "heads", "kv_heads", "d"].map(|name| size(case, name));
                let (b, q, kv, heads, kv_heads, d) = (b?, q?, kv?, heads?, kv_heads?, d?);
                ensure!(heads == kv_heads && case["causal"] == false, "is asked for plain attention alone");
                let keys = |seed| tensor(random(seed, b * heads * kv * d), &[b, heads, kv, d]);
                // ours has the heads of a token side by side
                let queries = swapped(&random(0, b * q * heads * d), [b, q, heads, d]);
                let shape = [b, heads, q, d];
                Inputs::Attention([tensor(queries, &shape), keys(1), keys(2)], shape)
            }
            _ => {
                let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
                Inputs::Product([tensor(random(0, m * k), &[m, k]), tensor(random(1, k * n), &[k, n])])
            }
        };
        Ok(Call { device: device.clone(), inputs, out: None })
    }
}

/// Values of `[a, b, c, d]` as `[a, c, b, d]`.
fn swapped(values: &[f32], [a, b, c, d]: [usize; 4]) -> Vec<f32> {
    let at = |(i, j, k): (usize, usize, usize)| ((i * b + k) * c + j) * d;
    let rows = (0..a).flat_map(|i| (0..c).flat_map(move |j| (0..b).map(move |k| (i, j, k))));
    rows.flat_map(|place| values[at(place)..at(place) + d].to_vec()).collect()
}

impl Ready for Call {
    fn call(&mut self) -> Result<()> {
        self.out = Some(match &self.inputs {
            Inputs::Product([a, b]) => Burn::float_matmul(a.clone(), b.clone()),
            Inputs::Attention([q, k, v], _) => {
                let (q, k, v) = (q.clone(), k.clone(), v.clone());
                let options = AttentionModuleOptions::default();
                attention(q, k, v, None, None, options, AttentionStrategy::FlashUnit)
                    .map_err(|e| anyhow!("{e:?}"))?
            }
        });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Burn::sync(&self.device).map_err(|e| anyhow!("{e:?}"))
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        let out = self.out.clone().ok_or_else(|| anyhow!("nothing was called"))?;
        let data = pollster::block_on(Burn::float_into_data(out)).map_err(|e| anyhow!("{e:?}"))?;
        let values = data.convert::<f32>().try_to_vec::<f32>().map_err(|e| anyhow!("{e:?}"))?;
        Ok(ends(&match &self.inputs {
            Inputs::Product(_) => values,
            Inputs::Attention(_, [b, heads, q, d]) => swapped(&values, [*b, *heads, *q, *d]),
        }))
    }
}
