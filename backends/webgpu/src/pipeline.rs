//! Compiled kernels: each variant of a source once a device, with a cache on disk where the driver has one.

use crate::faults::caught;
use crate::inner::{Inner, locked};
use crate::shader::Variant;
use perjoule_kernels::{Error, Result};
use perjoule_shaders::Source;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, OnceLock};

/// A kernel that can be dispatched.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// Variants that are compiled, or that somebody compiles right now.
#[derive(Default)]
pub(crate) struct Pipelines {
    made: Mutex<HashMap<Key, Arc<Kernel>>>,
    #[cfg(not(target_arch = "wasm32"))]
    cache: Option<crate::cache::DiskCache>,
}

/// What tells a kernel from all others. Two kernels of one text are one.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    entry: &'static str,
    checks: Checks,
    text: Arc<str>,
}

/// A variant of a source, which threads of rayon compile while the host prepares what comes next, or who needs it first: all kernels of a
/// model are compiled side by side.
pub(crate) struct Kernel {
    /// Which of its bindings are written.
    pub(crate) writes: Vec<bool>,
    /// The row that asked for it first.
    name: &'static str,
    path: &'static str,
    key: Key,
    made: OnceLock<Result<Pipeline, String>>,
    /// Held by who compiles it.
    compiling: Mutex<()>,
}

/// Which checks `wgpu` leaves in a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

    /// The variant. Where it is new, it is being compiled from now on.
    pub(crate) fn get(&self, inner: &Arc<Inner>, name: &'static str, shader: &Shader<'_>) -> Arc<Kernel> {
        let headers: Vec<&str> = shader.headers.iter().map(|header| header.text).collect();
        let text = shader.variant.text(&headers, shader.source.text);
        let key = Key { entry: shader.entry, checks: shader.checks, text: text.into() };
        match locked(&self.made).entry(key.clone()) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => {
                let kernel = Arc::new(Kernel {
                    writes: shader.variant.bound().map(|b| b.is_written()).collect(),
                    name,
                    path: shader.source.path,
                    key,
                    made: OnceLock::new(),
                    compiling: Mutex::default(),
                });
                kernel.begin(inner);
                new.insert(kernel).clone()
            }
        }
    }

    /// Waits for all that was asked for, and takes part. Fails with the first that does not compile.
    pub(crate) fn compiled(&self, inner: &Inner) -> Result<()> {
        let kernels: Vec<_> = locked(&self.made).values().cloned().collect();
        kernels.iter().try_for_each(|kernel| kernel.ready(inner).map(drop))
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

impl Kernel {
    #[cfg(not(target_arch = "wasm32"))]
    fn begin(self: &Arc<Self>, inner: &Arc<Inner>) {
        // a device that is gone by then needs no kernels
        let (kernel, inner) = (self.clone(), Arc::downgrade(inner));
        crate::background::spawn(move || {
            if let Some(inner) = inner.upgrade() {
                // an error is told to whoever needs the kernel
                let _ = kernel.made(&inner);
            }
        });
    }

    /// A browser compiles in processes of its own.
    #[cfg(target_arch = "wasm32")]
    fn begin(self: &Arc<Self>, inner: &Arc<Inner>) {
        let _ = self.made(inner);
    }

    /// The pipeline: waits while it is being compiled, and compiles it where nobody has begun.
    pub(crate) fn ready(&self, inner: &Inner) -> Result<&Pipeline> {
        self.made(inner).map_err(|why| match inner.alive() {
            Err(lost) => lost,
            Ok(()) => {
                Error::Fault { kernel: self.name, detail: format!("{} does not compile: {why}", self.path) }
            }
        })
    }

    /// The pipeline, or why there is none: for ever, unless only memory was missing.
    fn made(&self, inner: &Inner) -> Result<&Pipeline, String> {
        let known = || self.made.get().map(|made| made.as_ref().map_err(String::clone));
        if let Some(made) = known() {
            return made;
        }
        let _one = locked(&self.compiling);
        if let Some(made) = known() {
            return made;
        }
        // a panic would end the process on a thread of rayon, and is an error like any other
        let made = match caught(|| self.compile(inner)) {
            Ok(Err(error @ wgpu::Error::OutOfMemory { .. })) => return Err(error.to_string()),
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(said) => Err(said),
        };
        self.made.get_or_init(|| made).as_ref().map_err(String::clone)
    }

    fn compile(&self, inner: &Inner) -> Result<Pipeline, wgpu::Error> {
        let buffer = |binding: usize, ty| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = |&written: &bool| wgpu::BufferBindingType::Storage { read_only: !written };
        let uniforms = [wgpu::BufferBindingType::Uniform; 2];
        let types = self.writes.iter().map(storage).chain(uniforms);
        let entries: Vec<_> = types.enumerate().map(|(i, ty)| buffer(i, ty)).collect();
        let device = &inner.device;
        let make = || {
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(self.name),
                entries: &entries,
            });
            let desc = wgpu::ShaderModuleDescriptor {
                label: Some(self.path),
                source: wgpu::ShaderSource::Wgsl((&*self.key.text).into()),
            };
            let module = match self.key.checks {
                Checks::All => device.create_shader_module(desc),
                // SAFETY: only kernels that stay within what is bound, whose loops end, and that initialise what they share, are
                // asked for without checks: the conformance suite runs them over their edges, between guards.
                Checks::None => unsafe {
                    device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
                },
            };
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(self.name),
                bind_group_layouts: &[Some(&layout)],
                ..Default::default()
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(self.name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(self.key.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: self.key.checks == Checks::All,
                    ..Default::default()
                },
                cache: inner.pipelines.disk(),
            });
            Pipeline { pipeline, layout }
        };
        inner.checked(make)
    }
}
