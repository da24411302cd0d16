//! Compiled kernels: each variant of a source once a device, with a cache on disk where the driver has one.

use crate::inner::{Inner, locked};
use crate::shader::Variant;
use perjoule_kernels::{Error, Result};
use perjoule_shaders::Source;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

/// A kernel that can be dispatched.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// Which of its bindings are written.
    pub(crate) writes: Vec<bool>,
}

/// Variants that are compiled, or that somebody compiles right now: who comes second waits.
#[derive(Default)]
pub(crate) struct Pipelines {
    made: Mutex<HashMap<String, Slot>>,
    #[cfg(not(target_arch = "wasm32"))]
    cache: Option<crate::cache::DiskCache>,
}

type Slot = Arc<OnceLock<Result<Arc<Pipeline>, String>>>;

/// Which checks `wgpu` leaves in a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checks {
    /// Accesses out of bounds are caught.
    All,
    /// None: conformance cases cover the edges of the kernel, and every loop ends.
    None,
}

/// A kernel to compile: a source behind some headers, which of its entry points, and in which variant.
pub(crate) struct Shader<'a> {
    pub(crate) source: &'static Source,
    pub(crate) headers: &'a [&'static Source],
    pub(crate) entry: &'static str,
    pub(crate) variant: &'a Variant,
    pub(crate) checks: Checks,
}

impl Pipelines {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn with_cache(cache: Option<crate::cache::DiskCache>) -> Self {
        Pipelines { made: Mutex::default(), cache }
    }

    /// The variant, compiled where it is new.
    pub(crate) fn get(
        &self,
        inner: &Inner,
        kernel: &'static str,
        shader: &Shader<'_>,
    ) -> Result<Arc<Pipeline>> {
        let headers: Vec<&str> = shader.headers.iter().map(|header| header.text).collect();
        let text = shader.variant.text(&headers, shader.source.text);
        // the text says all but these two
        let key = format!("{}\0{:?}\0{text}", shader.entry, shader.checks);
        let slot = locked(&self.made).entry(key).or_default().clone();
        let made = slot.get_or_init(|| self.compile(inner, kernel, shader, &text).map(Arc::new));
        made.clone().map_err(|why| match inner.alive() {
            Err(lost) => lost,
            Ok(()) => {
                Error::Fault { kernel, detail: format!("{} does not compile: {why}", shader.source.path) }
            }
        })
    }

    fn compile(
        &self,
        inner: &Inner,
        kernel: &'static str,
        shader: &Shader<'_>,
        text: &str,
    ) -> Result<Pipeline, String> {
        let variant = shader.variant;
        let buffer = |binding: usize, ty| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries: Vec<_> = variant
            .bound()
            .enumerate()
            .map(|(i, b)| buffer(i, wgpu::BufferBindingType::Storage { read_only: !b.is_written() }))
            .collect();
        let bound = entries.len();
        entries.extend([bound, bound + 1].map(|i| buffer(i, wgpu::BufferBindingType::Uniform)));
        let device = &inner.device;
        let make = || {
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(kernel),
                entries: &entries,
            });
            let desc = wgpu::ShaderModuleDescriptor {
                label: Some(shader.source.path),
                source: wgpu::ShaderSource::Wgsl(text.into()),
            };
            let module = match shader.checks {
                Checks::All => device.create_shader_module(desc),
                // SAFETY: only kernels that stay within what is bound, whose loops end, and that initialise what they share, are
                // asked for without checks: the conformance suite runs them over their edges, between guards.
                Checks::None => unsafe {
                    device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
                },
            };
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel),
                bind_group_layouts: &[Some(&layout)],
                ..Default::default()
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(shader.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: shader.checks == Checks::All,
                    ..Default::default()
                },
                cache: self.disk(),
            });
            Pipeline { pipeline, layout, writes: variant.bound().map(|b| b.is_written()).collect() }
        };
        inner.checked(make).map_err(|error| error.to_string())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn disk(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref().map(|cache| cache.pipelines())
    }

    #[cfg(target_arch = "wasm32")]
    fn disk(&self) -> Option<&wgpu::PipelineCache> {
        None
    }
}
