//! From CUDA C++ to a loaded module: NVRTC at first use, with a cache on disk.
//!
//! A module is known by all that it depends on: its source with every common header, the definitions, the target, the compiler's version
//! and its options. The cache (`$XDG_CACHE_HOME/perjoule/cuda/`, or what the platform has for it; `PERJOULE_CUDA_CACHE` names another
//! folder, or is `off`) holds one file for each, which begins with a digest of its content: a torn file is compiled again. Files are
//! written whole under a name of their own and then renamed, so that processes may share the folder.

use crate::device::Inner;
use crate::driver::{Refused, check};
use crate::library;
use cudarc::driver::{CudaContext, sys};
use cudarc::nvrtc::sys as nvrtc;
use etcetera::BaseStrategy;
use perjoule_kernels::{Error, Result};
use perjoule_shaders::Source;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Environment variable: the folder of the cache, or `off`.
pub const VARIABLE: &str = "PERJOULE_CUDA_CACHE";

/// What is compiled: a source under some definitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Path of the source, as [`Source::path`].
    pub path: &'static str,
    /// Definitions, in order: `-DNAME=VALUE`.
    pub defines: Vec<(&'static str, String)>,
}

impl Variant {
    /// The source under these definitions.
    pub fn new(source: &'static Source, defines: &[(&'static str, String)]) -> Self {
        Variant { path: source.path, defines: defines.to_vec() }
    }
}

/// Modules that are compiled or being compiled, of one device.
pub(crate) struct Modules {
    sm: u32,
    known: Mutex<HashMap<Variant, Slot>>,
}

/// Filled by who asks first; others wait for it.
type Slot = Arc<OnceLock<Result<Arc<Module>>>>;

impl Modules {
    pub(crate) fn new(sm: u32) -> Self {
        Modules { sm, known: Mutex::default() }
    }
}

/// A loaded module.
pub(crate) struct Module {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by us and unloaded once; the driver waits for what runs of it. What it answers helps nobody.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

// SAFETY: a handle of the driver, which takes calls from all threads.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a loaded module.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) module: Arc<Module>,
    pub(crate) function: sys::CUfunction,
}

// SAFETY: a handle of the driver, which takes calls from all threads; the module is kept.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// The kernel of that name.
    pub(crate) fn function(self: &Arc<Self>, name: &'static str) -> Result<Function> {
        let missing = |why: String| Error::Unsupported { what: name, why };
        self.context.bind_to_thread().map_err(|e| missing(Refused(e.0).to_string()))?;
        let c_name = CString::new(name).map_err(|e| missing(e.to_string()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: writes a handle; the module is loaded in the current context.
        check(unsafe { sys::cuModuleGetFunction(&mut function, self.module, c_name.as_ptr()) })
            .map_err(|e| missing(format!("its module has no such kernel: {e}")))?;
        Ok(Function { module: self.clone(), function })
    }
}

impl Function {
    /// Lets its launches have so much dynamic shared memory, in bytes: more than 48 KiB must be asked for.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        self.set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
    }

    fn set(&self, attribute: sys::CUfunction_attribute, value: u32) -> Result<()> {
        // SAFETY: a function of a module that is kept; the context was made current when it was looked up on this thread.
        check(unsafe { sys::cuFuncSetAttribute(self.function, attribute, value as i32) }).map_err(|e| {
            Error::Unsupported { what: "this much shared memory", why: format!("{value} bytes: {e}") }
        })
    }

    /// Blocks of so many threads with so much dynamic shared memory that a multiprocessor holds at once.
    pub(crate) fn occupancy(&self, threads: u32, shared: u32) -> u32 {
        let mut blocks = 0;
        // SAFETY: writes a number; a function of a module that is kept.
        let answer = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.function,
                threads as i32,
                shared as usize,
            )
        };
        check(answer).map_or(1, |()| blocks.max(1) as u32)
    }
}

impl Inner {
    /// The module of a variant: loaded already, from the cache, or compiled.
    pub(crate) fn module(
        self: &Arc<Self>,
        source: &'static Source,
        defines: &[(&'static str, String)],
    ) -> Result<Arc<Module>> {
        let variant = Variant::new(source, defines);
        let slot = {
            let mut known = self.modules.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.entry(variant.clone()).or_default().clone()
        };
        slot.get_or_init(|| {
            let cubin = cubin(source, &variant.defines, &target(self.modules.sm))?;
            self.bind()?;
            let mut module = std::ptr::null_mut();
            // SAFETY: reads a whole cubin, writes a handle; the context is current.
            check(unsafe { sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()) })
                .map_err(|e| self.refuse("cuModuleLoadData", e))?;
            Ok(Arc::new(Module { context: self.context.clone(), module }))
        })
        .clone()
    }
}

/// The target of a compute capability: where an architecture has features of its own, with them.
pub fn target(sm: u32) -> String {
    match sm {
        90 | 100..=129 => format!("sm_{sm}a"),
        _ => format!("sm_{sm}"),
    }
}

/// What is called instead of the compiler.
pub type StandIn = fn(&Variant, &str) -> Vec<u8>;
static STAND_IN: OnceLock<StandIn> = OnceLock::new();

/// From now on `stand` is asked for the machine code of a variant for a target, and the compiler no more: for tests that want to know what
/// is asked for. The first call counts.
pub fn stand_in(stand: StandIn) {
    let _ = STAND_IN.set(stand);
}

/// The machine code of a variant, from the cache or compiled.
///
/// # Errors
/// [`Error::Unsupported`] where NVRTC is missing or the source does not compile, with its log.
pub fn cubin(source: &'static Source, defines: &[(&'static str, String)], target: &str) -> Result<Vec<u8>> {
    if let Some(stand) = STAND_IN.get() {
        return Ok(stand(&Variant::new(source, defines), target));
    }
    let compiler =
        Compiler::load().map_err(|why| Error::Unsupported { what: "compiling CUDA kernels", why })?;
    let options = options(defines, target);
    let file = folder().map(|folder| folder.join(format!("{}.cubin", compiler.key(source, &options))));
    if let Some(cubin) = file.as_deref().and_then(read) {
        return Ok(cubin);
    }
    let (cubin, _) = compiler.compile(source, &options)?;
    if let Some(file) = file {
        // without a cache the next process compiles again: no reason to fail
        let _ = write(&file, &cubin);
    }
    Ok(cubin)
}

/// The options of a variant.
pub fn options(defines: &[(&'static str, String)], target: &str) -> Vec<String> {
    let mut options =
        vec![format!("--gpu-architecture={target}"), "--std=c++17".into(), "-default-device".into()];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// Stack of the thread that compiles.
const STACK: usize = 64 << 20;

/// NVRTC.
#[derive(Debug, Clone, Copy)]
pub struct Compiler {
    version: (i32, i32),
}

impl Compiler {
    /// Looks for NVRTC, once a process.
    ///
    /// # Errors
    /// Where it was looked for, and what to install.
    pub fn load() -> Result<Self, String> {
        static STATE: OnceLock<Result<Compiler, String>> = OnceLock::new();
        STATE
            .get_or_init(|| {
                library::open(&library::NVRTC)?;
                // SAFETY: looks for the library by its names; one that is open already is found by its own.
                if !unsafe { nvrtc::is_culib_present() } {
                    return Err("NVRTC was found but cannot be opened by its name; name its folder in LD_LIBRARY_PATH".into());
                }
                let mut version = (0, 0);
                // SAFETY: writes two numbers; the library is there.
                let answer = unsafe { nvrtc::nvrtcVersion(&mut version.0, &mut version.1) };
                match answer {
                    nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(Compiler { version }),
                    other => Err(format!("NVRTC does not work: nvrtcVersion gives {other:?}")),
                }
            })
            .clone()
    }

    /// Its version, such as 13.0.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Name of a compiled form: a digest of all that it depends on.
    fn key(&self, source: &Source, options: &[String]) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        add(&format!("NVRTC {}.{}", self.version.0, self.version.1));
        options.iter().for_each(|option| add(option));
        for source in perjoule_shaders::cuda::HEADERS.iter().copied().chain([source]) {
            add(source.path);
            add(source.text);
        }
        hex(&digest.finalize())
    }

    /// Compiles. Gives the machine code and the log.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the log.
    pub fn compile(&self, source: &Source, options: &[String]) -> Result<(Vec<u8>, String)> {
        // the compiler recurses deeper than a caller's thread may have room for: 2 MiB are too little
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("nvrtc".into()).stack_size(STACK);
            let refuse = |why: String| Error::Unsupported { what: "compiling CUDA kernels", why };
            let thread = thread.spawn_scoped(scope, || self.compile_here(source, options));
            let thread = thread.map_err(|e| refuse(format!("no thread for the compiler: {e}")))?;
            thread.join().map_err(|_| refuse("the compiler's thread panicked".into()))?
        })
    }

    fn compile_here(&self, source: &Source, options: &[String]) -> Result<(Vec<u8>, String)> {
        use nvrtc::nvrtcResult::NVRTC_SUCCESS;
        let refuse = |why: String| Error::Unsupported {
            what: "this CUDA kernel",
            why: format!("{}: {why}", source.path),
        };
        let text = |text: &str| CString::new(text).map_err(|e| refuse(e.to_string()));
        let headers = perjoule_shaders::cuda::HEADERS;
        let names =
            headers.iter().map(|h| text(h.path.trim_start_matches("cuda/"))).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|h| text(h.text)).collect::<Result<Vec<_>>>()?;
        let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>>>()?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names_p, texts_p, options_p) = (pointers(&names), pointers(&texts), pointers(&options));
        let (main, name) = (text(source.text)?, text(source.path)?);
        let mut program = std::ptr::null_mut();
        // SAFETY: terminated strings that live until the program is destroyed; as many names as texts.
        let made = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut program,
                main.as_ptr(),
                name.as_ptr(),
                headers.len() as i32,
                texts_p.as_ptr(),
                names_p.as_ptr(),
            )
        };
        if made != NVRTC_SUCCESS {
            return Err(refuse(format!("nvrtcCreateProgram gives {made:?}")));
        }
        /// Destroys the program.
        struct Program(nvrtc::nvrtcProgram);
        impl Drop for Program {
            fn drop(&mut self) {
                // SAFETY: a program of ours, destroyed once. What it answers helps nobody.
                let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
            }
        }
        let program = Program(program);
        // SAFETY: as many options as said, terminated.
        let done =
            unsafe { nvrtc::nvrtcCompileProgram(program.0, options_p.len() as i32, options_p.as_ptr()) };
        let log = {
            let mut bytes = 0;
            // SAFETY: writes a number.
            let sized = unsafe { nvrtc::nvrtcGetProgramLogSize(program.0, &mut bytes) };
            let mut log = vec![0u8; if sized == NVRTC_SUCCESS { bytes } else { 0 }];
            if !log.is_empty() {
                // SAFETY: writes as many bytes as it said.
                let _ = unsafe { nvrtc::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()) };
            }
            String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string()
        };
        if done != NVRTC_SUCCESS {
            return Err(refuse(format!("it does not compile ({done:?}): {log}")));
        }
        let mut bytes = 0;
        // SAFETY: writes a number.
        let sized = unsafe { nvrtc::nvrtcGetCUBINSize(program.0, &mut bytes) };
        let mut cubin = vec![0u8; if sized == NVRTC_SUCCESS { bytes } else { 0 }];
        if cubin.is_empty() {
            return Err(refuse(format!("NVRTC gives no machine code ({sized:?})")));
        }
        // SAFETY: writes as many bytes as it said.
        let got = unsafe { nvrtc::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) };
        match got {
            NVRTC_SUCCESS => Ok((cubin, log)),
            other => Err(refuse(format!("nvrtcGetCUBIN gives {other:?}"))),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The folder of the cache; `None` where there is none.
fn folder() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(value) if value == "off" => None,
        Some(value) if !value.is_empty() => Some(value.into()),
        _ => Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("perjoule").join("cuda")),
    }
}

const DIGEST: usize = 32;

fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (digest, cubin) = bytes.split_at_checked(DIGEST)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}

fn write(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let part = file.with_extension(format!("{}-{count}.part", std::process::id()));
    let bytes = [Sha256::digest(cubin).as_slice(), cubin].concat();
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, file)).inspect_err(|_| {
        // what is left of it is in nobody's way but the disk's
        let _ = std::fs::remove_file(&part);
    })
}
