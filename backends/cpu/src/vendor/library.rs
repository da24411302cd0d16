//! Finding and loading the libraries.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_float, c_int};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// Intel oneMKL.
    Mkl,
    /// OpenBLAS.
    OpenBlas,
    /// oneDNN.
    OneDnn,
}

pub(super) const ROW_MAJOR: c_int = 101;
pub(super) const NO_TRANS: c_int = 111;
pub(super) const TRANS: c_int = 112;
/// `CblasFixOffset`: one offset for all of C.
pub(super) const FIX_OFFSET: c_int = 173;

pub(super) type Sgemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const f32,
    c_int,
    *const f32,
    c_int,
    c_float,
    *mut f32,
    c_int,
);
pub(super) type GemmBf16 = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const u16,
    c_int,
    *const u16,
    c_int,
    c_float,
    *mut f32,
    c_int,
);
pub(super) type GemmI8 = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const u8,
    c_int,
    i8,
    *const i8,
    c_int,
    i8,
    c_float,
    *mut i32,
    c_int,
    *const i32,
);
/// `dnnl_sgemm`: row-major, `N` or `T`, sizes of 64 bits; 0 when it went well.
pub(super) type DnnlSgemm = unsafe extern "C" fn(
    c_char,
    c_char,
    i64,
    i64,
    i64,
    c_float,
    *const f32,
    i64,
    *const f32,
    i64,
    c_float,
    *mut f32,
    i64,
) -> c_int;
type SetInt = unsafe extern "C" fn(c_int);
type SetIntGet = unsafe extern "C" fn(c_int) -> c_int;

/// The calls of a loaded library. It stays loaded until the process ends: its threads could not be taken away from under their feet.
pub(super) struct Calls {
    pub(super) sgemm: Option<Sgemm>,
    pub(super) bf16: Option<GemmBf16>,
    pub(super) i8: Option<GemmI8>,
    pub(super) dnnl_sgemm: Option<DnnlSgemm>,
    threads: Option<SetInt>,
    /// Held during a call: the number of threads is the process's.
    busy: Mutex<()>,
}

impl Calls {
    /// Runs `call` with so many threads of the library.
    pub(super) fn with_threads(&self, threads: usize, call: impl FnOnce()) {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = self.threads {
            // SAFETY: the library's own function of that name, which takes a number of threads.
            unsafe { set(c_int::try_from(threads).unwrap_or(c_int::MAX)) };
        }
        call();
    }
}

impl Vendor {
    fn variable(self) -> &'static str {
        match self {
            Vendor::Mkl => "PERJOULE_MKL",
            Vendor::OpenBlas => "PERJOULE_OPENBLAS",
            Vendor::OneDnn => "PERJOULE_ONEDNN",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Vendor::Mkl => "oneMKL",
            Vendor::OpenBlas => "OpenBLAS",
            Vendor::OneDnn => "oneDNN",
        }
    }

    /// Names of the file, newest first.
    fn files(self) -> &'static [&'static str] {
        match (self, cfg!(target_os = "macos")) {
            (Vendor::Mkl, false) => &["libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so"],
            (Vendor::OpenBlas, false) => &["libopenblas.so.0", "libopenblas.so", "libscipy_openblas.so"],
            (Vendor::OneDnn, false) => &["libdnnl.so.3", "libdnnl.so"],
            (Vendor::Mkl, true) => &["libmkl_rt.2.dylib", "libmkl_rt.dylib"],
            (Vendor::OpenBlas, true) => &["libopenblas.dylib", "libscipy_openblas.dylib"],
            (Vendor::OneDnn, true) => &["libdnnl.3.dylib", "libdnnl.dylib"],
        }
    }

    /// The library, loaded on first use; or why there is none, in words of a refusal.
    pub(super) fn calls(self) -> Result<&'static Calls, &'static str> {
        static LOADED: [OnceLock<Result<Calls, String>>; 3] = [const { OnceLock::new() }; 3];
        LOADED[self as usize].get_or_init(|| self.load()).as_ref().map_err(String::as_str)
    }

    fn load(self) -> Result<Calls, String> {
        let variable = self.variable();
        if let Some(file) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
            let path = PathBuf::from(file);
            let library =
                open(&path).map_err(|error| format!("cannot load what {variable} names: {error}"))?;
            return self.resolve(library, &path);
        }
        let everywhere = self.files().iter().map(PathBuf::from);
        for path in everywhere.chain(self.in_python()) {
            if let Ok(library) = open(&path) {
                return self.resolve(library, &path);
            }
        }
        Err(format!("needs {}, which was not found: {variable}=FILE names {}", self.name(), self.files()[0]))
    }

    /// Files in the active Python environment: pip puts MKL and oneDNN (onednn-cpu-gomp) beside `python`, and OpenBLAS into a package.
    fn in_python(self) -> Vec<PathBuf> {
        let Some(environment) = std::env::var_os("VIRTUAL_ENV") else { return Vec::new() };
        let lib = PathBuf::from(environment).join("lib");
        let mut folders = vec![lib.clone()];
        for version in std::fs::read_dir(&lib).into_iter().flatten().flatten() {
            folders.push(version.path().join("site-packages/scipy_openblas32/lib"));
        }
        let within = |folder: &PathBuf| self.files().iter().map(|file| folder.join(file)).collect::<Vec<_>>();
        folders.iter().flat_map(within).filter(|path| path.is_file()).collect()
    }

    fn resolve(self, library: Library, path: &std::path::Path) -> Result<Calls, String> {
        // dropped, it would be unloaded
        let library: &'static Library = Box::leak(Box::new(library));
        let mut calls = Calls {
            sgemm: None,
            bf16: None,
            i8: None,
            dnnl_sgemm: None,
            threads: None,
            busy: Mutex::new(()),
        };
        // SAFETY: types as the libraries' headers declare these functions, in their interface of 32-bit integers.
        unsafe {
            match self {
                Vendor::Mkl => {
                    // before the first product: integers of 32 bits
                    if let Some(layer) = symbol::<SetIntGet>(library, "MKL_Set_Interface_Layer") {
                        layer(0);
                    }
                    if let Some(dynamic) = symbol::<SetInt>(library, "MKL_Set_Dynamic") {
                        dynamic(0);
                    }
                    sleep_behind_calls(path);
                    calls.sgemm = symbol(library, "cblas_sgemm");
                    calls.bf16 = symbol(library, "cblas_gemm_bf16bf16f32");
                    calls.i8 = symbol(library, "cblas_gemm_s8u8s32");
                    calls.threads = symbol(library, "MKL_Set_Num_Threads");
                }
                Vendor::OpenBlas => {
                    // SciPy's build names its functions with a prefix
                    for prefix in ["", "scipy_"] {
                        let name = |name: &str| format!("{prefix}{name}");
                        calls.sgemm = calls.sgemm.or_else(|| symbol(library, &name("cblas_sgemm")));
                        let threads = name("openblas_set_num_threads");
                        calls.threads = calls.threads.or_else(|| symbol(library, &threads));
                    }
                }
                Vendor::OneDnn => {
                    calls.dnnl_sgemm = symbol(library, "dnnl_sgemm");
                    calls.threads = symbol(library, "omp_set_num_threads");
                }
            }
        }
        if calls.sgemm.is_none() && calls.dnnl_sgemm.is_none() {
            return Err(format!("{} has no function of {}", path.display(), self.name()));
        }
        if calls.threads.is_none() {
            return Err(format!("{} cannot be told its number of threads", path.display()));
        }
        Ok(calls)
    }
}

fn open(path: &std::path::Path) -> Result<Library, libloading::Error> {
    // SAFETY: a library runs what it wants when it is loaded; the user named it, or the system's loader knows it by its usual name.
    // Global, since parts that MKL loads later look for its symbols.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
}

/// # Safety
/// `T` is the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Option<T> {
    // SAFETY: by the contract.
    unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

/// Tells Intel's OpenMP, which lies beside MKL where pip put both, to let its threads sleep at once: they would spin for 200 ms.
fn sleep_behind_calls(mkl: &std::path::Path) {
    let beside = mkl.with_file_name("libiomp5.so");
    let Ok(openmp) = open(&beside) else { return };
    let openmp: &'static Library = Box::leak(Box::new(openmp));
    // SAFETY: a function of Intel's OpenMP that takes milliseconds.
    unsafe {
        if let Some(set) = symbol::<SetInt>(openmp, "kmp_set_blocktime") {
            set(0);
        }
    }
}
