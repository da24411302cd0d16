//! oneMKL and OpenBLAS by their C interface, B packed once where it is to be and the library can.

use crate::{Ready, copies, ends, random, size};
use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};
use serde_json::Value;
use std::ffi::{c_float, c_int};
use std::path::{Path, PathBuf};

const ROW_MAJOR: c_int = 101;
const NO_TRANS: c_int = 111;
const TRANS: c_int = 112;
const PACKED: c_int = 151;
const B_MATRIX: c_int = 162;
const FIX_OFFSET: c_int = 173;

type Gemm<T> = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const T,
    c_int,
    *const T,
    c_int,
    c_float,
    *mut f32,
    c_int,
);
type GemmI8 = unsafe extern "C" fn(
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
type PackI8 = unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, c_int, *const i8, c_int, *mut i8);
type PackSize = unsafe extern "C" fn(c_int, c_int, c_int, c_int) -> usize;
type Pack<T> =
    unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, c_int, c_float, *const T, c_int, *mut T);
/// `cblas_sgemm_compute`, which has no factor; that of bf16 has one behind the sizes, as [`Gemm`].
type Compute = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    c_int,
    *const f32,
    c_int,
    c_float,
    *mut f32,
    c_int,
);

/// A loaded library.
pub(crate) struct Library {
    loaded: Loaded,
    /// SciPy's build of OpenBLAS names its functions with one.
    prefix: &'static str,
}

impl Library {
    /// Loads `who`: what `PERJOULE_MKL` or `PERJOULE_OPENBLAS` names, or what pip put into the active Python environment.
    pub(crate) fn load(who: &str, threads: usize) -> Result<Self> {
        let lib = PathBuf::from(std::env::var_os("VIRTUAL_ENV").context("no VIRTUAL_ENV")?).join("lib");
        let (folder, name) = match who {
            "mkl" => (lib.clone(), "libmkl_rt.so"),
            "openblas" => (
                std::fs::read_dir(&lib)?
                    .flatten()
                    .map(|version| version.path().join("site-packages/scipy_openblas32/lib"))
                    .find(|folder| folder.is_dir())
                    .context("no scipy_openblas32 in the environment")?,
                "libscipy_openblas",
            ),
            _ => bail!("unknown peer {who}"),
        };
        let named = std::env::var_os(format!("PERJOULE_{}", who.to_uppercase())).map(PathBuf::from);
        let path = named.or_else(|| starting(&folder, name));
        let path = path.with_context(|| format!("no {name} in {}", folder.display()))?;
        // SAFETY: a library runs what it wants when it is loaded. Global, since parts that MKL loads later look for its symbols.
        let loaded = unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }?;
        let mut library = Library { loaded, prefix: "" };
        let threads = c_int::try_from(threads)?;
        // SAFETY: types as the libraries' headers declare these functions.
        unsafe {
            if who == "mkl" {
                library.get::<unsafe extern "C" fn(c_int) -> c_int>("MKL_Set_Interface_Layer")?(0);
                library.get::<unsafe extern "C" fn(c_int)>("MKL_Set_Dynamic")?(0);
                library.get::<unsafe extern "C" fn(c_int)>("MKL_Set_Num_Threads")?(threads);
            } else {
                if library.get::<unsafe extern "C" fn()>("cblas_sgemm").is_err() {
                    library.prefix = "scipy_";
                }
                library.get::<unsafe extern "C" fn(c_int)>("openblas_set_num_threads")?(threads);
            }
        }
        Ok(library)
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn get<T: Copy>(&self, name: &str) -> Result<T> {
        let name = format!("{}{name}", self.prefix);
        // SAFETY: by the contract.
        Ok(*unsafe { self.loaded.get::<T>(name.as_bytes()) }?)
    }
}

/// A file of `folder` whose name starts so.
pub(crate) fn starting(folder: &Path, name: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|file| file.path());
    let mut found: Vec<_> =
        files.filter(|f| f.file_name().is_some_and(|f| f.to_string_lossy().starts_with(name))).collect();
    found.sort();
    found.into_iter().next()
}

/// A vector that starts at a cache line, as both libraries' own allocators align.
pub(crate) struct Aligned<T> {
    raw: Vec<T>,
    skip: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(crate) fn new(count: usize) -> Self {
        let raw = vec![T::default(); count + 64 / size_of::<T>()];
        let skip = raw.as_ptr().align_offset(64);
        Aligned { raw, skip }
    }

    pub(crate) fn of(values: &[T]) -> Self {
        let mut aligned = Self::new(values.len());
        aligned.raw[aligned.skip..][..values.len()].copy_from_slice(values);
        aligned
    }

    pub(crate) fn ptr(&self) -> *const T {
        self.raw[self.skip..].as_ptr()
    }

    pub(crate) fn ptr_mut(&mut self) -> *mut T {
        self.raw[self.skip..].as_mut_ptr()
    }
}

enum Kind {
    F32 { gemm: Gemm<f32>, compute: Option<Compute>, a: Aligned<f32>, b: Vec<Aligned<f32>> },
    Bf16 { gemm: Gemm<u16>, a: Aligned<u16>, b: Vec<Aligned<u16>> },
    I8 { gemm: GemmI8, a: Aligned<u8>, b: Vec<Aligned<i8>>, sums: Aligned<i32> },
}

/// A product made ready.
pub(crate) struct Product {
    kind: Kind,
    /// `NO_TRANS`, `TRANS` or `PACKED`.
    b_is: c_int,
    m: usize,
    n: usize,
    k: usize,
    ldb: c_int,
    c: Aligned<f32>,
    next: usize,
}

impl Product {
    pub(crate) fn new(library: &Library, case: &Value) -> Result<Self> {
        ensure!(case["op"] == "matmul", "has no attention");
        let (square, packs) = (case["form"] == "square", case["packed"] == true);
        let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
        let lies = if square { NO_TRANS } else { TRANS };
        let mut b_is = lies;
        let ldb = c_int::try_from(if square { n } else { k })?;
        let sizes = (m, n, k);
        let round =
            |values: Vec<f32>| values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect::<Vec<_>>();
        let bytes = |values: Vec<f32>| values.iter().map(|v| (v * 128.0).round() as i8).collect::<Vec<_>>();
        let (a, b) = (random(0, m * k), random(1, n * k));
        // SAFETY: types as the libraries' headers declare these functions.
        let kind = unsafe {
            match case["dtype"].as_str().unwrap_or_default() {
                "f32" => {
                    let compute = match packs {
                        true => library.get::<Compute>("cblas_sgemm_compute").ok(),
                        false => None,
                    };
                    let b = match compute {
                        Some(_) => {
                            let pack: Pack<f32> = library.get("cblas_sgemm_pack")?;
                            packed(library, "cblas_sgemm", sizes, case, |m, n, k, to| {
                                pack(ROW_MAJOR, B_MATRIX, lies, m, n, k, 1.0, b.as_ptr(), ldb, to);
                            })?
                        }
                        None => vec_of(&b, case),
                    };
                    if compute.is_some() {
                        b_is = PACKED;
                    }
                    Kind::F32 { gemm: library.get("cblas_sgemm")?, compute, a: Aligned::of(&a), b }
                }
                "bf16" => {
                    let (name, a, b) = ("cblas_gemm_bf16bf16f32", Aligned::of(&round(a)), round(b));
                    let plain: Gemm<u16> = library.get(name).ok().context("has no product of bf16")?;
                    match library.get(&format!("{name}_compute")) {
                        Ok(gemm) if packs => {
                            b_is = PACKED;
                            let pack: Pack<u16> = library.get(&format!("{name}_pack"))?;
                            let b = packed(library, name, sizes, case, |m, n, k, to| {
                                pack(ROW_MAJOR, B_MATRIX, lies, m, n, k, 1.0, b.as_ptr(), ldb, to);
                            })?;
                            Kind::Bf16 { gemm, a, b }
                        }
                        _ => Kind::Bf16 { gemm: plain, a, b: vec_of(&b, case) },
                    }
                }
                "i8" => {
                    let name = "cblas_gemm_s8u8s32";
                    let plain: GemmI8 = library.get(name).ok().context("has no product of i8")?;
                    // A is to be unsigned: 128 more, of which the call takes 128 away
                    let a: Vec<u8> = bytes(a).iter().map(|v| *v as u8 ^ 0x80).collect();
                    let (a, b) = (Aligned::of(&a), bytes(b));
                    let (gemm, b) = match library.get(&format!("{name}_compute")) {
                        Ok(compute) if packs => {
                            b_is = PACKED;
                            let pack: PackI8 = library.get(&format!("{name}_pack"))?;
                            (
                                compute,
                                packed(library, name, sizes, case, |m, n, k, to| {
                                    pack(ROW_MAJOR, B_MATRIX, lies, m, n, k, b.as_ptr(), ldb, to);
                                })?,
                            )
                        }
                        _ => (plain, vec_of(&b, case)),
                    };
                    Kind::I8 { gemm, a, b, sums: Aligned::new(m * n) }
                }
                dtype => bail!("has no product of {dtype}"),
            }
        };
        Ok(Product { kind, b_is, m, n, k, ldb, c: Aligned::new(m * n), next: 0 })
    }
}

fn vec_of<T: Copy + Default>(b: &[T], case: &Value) -> Vec<Aligned<T>> {
    (0..copies(case, size_of_val(b))).map(|_| Aligned::of(b)).collect()
}

/// Copies of B in the library's layout, which `pack` writes.
///
/// # Safety
/// `NAME_pack_get_size` takes what MKL's header says.
unsafe fn packed<T: Copy + Default>(
    library: &Library,
    name: &str,
    (m, n, k): (usize, usize, usize),
    case: &Value,
    pack: impl Fn(c_int, c_int, c_int, *mut T),
) -> Result<Vec<Aligned<T>>> {
    let (m, n, k) = (c_int::try_from(m)?, c_int::try_from(n)?, c_int::try_from(k)?);
    // SAFETY: by the contract.
    let bytes = unsafe { library.get::<PackSize>(&format!("{name}_pack_get_size"))?(B_MATRIX, m, n, k) };
    let one = || {
        let mut packed = Aligned::new(bytes.div_ceil(size_of::<T>()));
        pack(m, n, k, packed.ptr_mut());
        packed
    };
    Ok((0..copies(case, bytes)).map(|_| one()).collect())
}

impl Ready for Product {
    fn call(&mut self) -> Result<()> {
        let (m, n, k) = (self.m as c_int, self.n as c_int, self.k as c_int);
        let (b_is, ldb, at, c) = (self.b_is, self.ldb, self.next, self.c.ptr_mut());
        // SAFETY: sizes and strides are those of the vectors; C is nobody else's.
        unsafe {
            match &mut self.kind {
                Kind::F32 { compute: Some(compute), a, b, .. } => {
                    compute(ROW_MAJOR, NO_TRANS, b_is, m, n, k, a.ptr(), k, b[at].ptr(), ldb, 0.0, c, n);
                }
                Kind::F32 { gemm, a, b, .. } => {
                    gemm(ROW_MAJOR, NO_TRANS, b_is, m, n, k, 1.0, a.ptr(), k, b[at].ptr(), ldb, 0.0, c, n);
                }
                Kind::Bf16 { gemm, a, b } => {
                    gemm(ROW_MAJOR, NO_TRANS, b_is, m, n, k, 1.0, a.ptr(), k, b[at].ptr(), ldb, 0.0, c, n);
                }
                Kind::I8 { gemm, a, b, sums } => {
                    let (a, b, sums) = (a.ptr(), b[at].ptr(), sums.ptr_mut());
                    gemm(
                        ROW_MAJOR, NO_TRANS, b_is, FIX_OFFSET, m, n, k, 1.0, a, k, -128, b, ldb, 0, 0.0,
                        sums, n, &0,
                    );
                }
            }
        }
        let sets = match &self.kind {
            Kind::F32 { b, .. } => b.len(),
            Kind::Bf16 { b, .. } => b.len(),
            Kind::I8 { b, .. } => b.len(),
        };
        self.next = (self.next + 1) % sets;
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        let count = self.m * self.n;
        Ok(match &self.kind {
            Kind::I8 { sums, .. } => {
                ends(&sums.raw[sums.skip..][..count]).iter().map(|sum| *sum as f32).collect()
            }
            _ => ends(&self.c.raw[self.c.skip..][..count]),
        })
    }
}
