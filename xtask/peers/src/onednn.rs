//! oneDNN by its C interface: products without attributes by its functions of BLAS or as a primitive, whichever is faster; weights in
//! the layout that the primitive asks for where they are packed.

use crate::blas::{Aligned, starting};
use crate::{Ready, copies, ends, random, size};
use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};
use serde_json::Value;
use std::ffi::{c_char, c_float, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// An object of the library's; they last as long as the process.
type Handle = *mut c_void;
type Dims = [i64; 12];

const CPU: c_int = 1;
const ANY: c_int = 1;
const WEIGHTS_DESC: c_int = 131;
const SRC: c_int = 1;
const DST: c_int = 17;
const WEIGHTS: c_int = 33;

/// `dnnl_exec_arg_t`.
#[repr(C)]
struct Arg {
    what: c_int,
    memory: Handle,
}

type Sgemm = unsafe extern "C" fn(
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
type GemmI8 = unsafe extern "C" fn(
    c_char,
    c_char,
    c_char,
    i64,
    i64,
    i64,
    c_float,
    *const i8,
    i64,
    i8,
    *const i8,
    i64,
    i8,
    c_float,
    *mut i32,
    i64,
    *const i32,
) -> c_int;
type Product = unsafe extern "C" fn(*mut Handle, Handle, Handle, Handle, Handle, Handle, Handle) -> c_int;
type Reorder = unsafe extern "C" fn(*mut Handle, Handle, Handle, Handle, Handle, Handle) -> c_int;
type Execute = unsafe extern "C" fn(Handle, Handle, c_int, *const Arg) -> c_int;

/// A loaded library.
pub(crate) struct Library {
    loaded: Loaded,
    engine: Handle,
    stream: Handle,
}

fn check(status: c_int, what: &str) -> Result<()> {
    match status {
        0 => Ok(()),
        3 => bail!("{what} is unimplemented on this processor"),
        _ => bail!("{what} failed with {status}"),
    }
}

impl Library {
    /// Loads what `PERJOULE_ONEDNN` names, or what pip put into the active Python environment.
    pub(crate) fn load(threads: usize) -> Result<Self> {
        let lib = PathBuf::from(std::env::var_os("VIRTUAL_ENV").context("no VIRTUAL_ENV")?).join("lib");
        let named = std::env::var_os("PERJOULE_ONEDNN").map(PathBuf::from);
        let path = named.or_else(|| starting(&lib, "libdnnl.so"));
        let path = path.with_context(|| format!("no libdnnl.so in {}", lib.display()))?;
        // SAFETY: a library runs what it wants when it is loaded.
        let loaded = unsafe { Loaded::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }?;
        let mut library = Library { loaded, engine: null_mut(), stream: null_mut() };
        let (mut engine, mut stream) = (null_mut(), null_mut());
        // SAFETY: types as the headers of oneDNN 3 and of OpenMP declare these functions.
        unsafe {
            library.get::<unsafe extern "C" fn(c_int)>("omp_set_num_threads")?(c_int::try_from(threads)?);
            let create: unsafe extern "C" fn(*mut Handle, c_int, usize) -> c_int =
                library.get("dnnl_engine_create")?;
            check(create(&mut engine, CPU, 0), "the engine")?;
            let create: unsafe extern "C" fn(*mut Handle, Handle, c_uint) -> c_int =
                library.get("dnnl_stream_create")?;
            check(create(&mut stream, engine, 1), "the stream")?;
        }
        (library.engine, library.stream) = (engine, stream);
        Ok(library)
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn get<T: Copy>(&self, name: &str) -> Result<T> {
        // SAFETY: by the contract.
        Ok(*unsafe { self.loaded.get::<T>(name.as_bytes()) }.with_context(|| format!("has no {name}"))?)
    }

    /// A matrix whose element `(row, col)` lies at `row * strides.0 + col * strides.1`, or lies as the library likes.
    fn desc(&self, rows: usize, cols: usize, kind: Kind, strides: Option<(usize, usize)>) -> Result<Handle> {
        let dims = |(a, b): (usize, usize)| {
            let mut dims: Dims = [0; 12];
            (dims[0], dims[1]) = (a as i64, b as i64);
            dims
        };
        let (mut desc, sizes) = (null_mut(), dims((rows, cols)));
        // SAFETY: types as the header declares these functions.
        let status = unsafe {
            match strides {
                Some(strides) => {
                    let create: unsafe extern "C" fn(
                        *mut Handle,
                        c_int,
                        *const i64,
                        c_int,
                        *const i64,
                    ) -> c_int = self.get("dnnl_memory_desc_create_with_strides")?;
                    create(&mut desc, 2, sizes.as_ptr(), kind as c_int, dims(strides).as_ptr())
                }
                None => {
                    let create: unsafe extern "C" fn(*mut Handle, c_int, *const i64, c_int, c_int) -> c_int =
                        self.get("dnnl_memory_desc_create_with_tag")?;
                    create(&mut desc, 2, sizes.as_ptr(), kind as c_int, ANY)
                }
            }
        };
        check(status, "a description")?;
        Ok(desc)
    }

    fn memory(&self, desc: Handle, at: Handle) -> Result<Handle> {
        let mut memory = null_mut();
        // SAFETY: type as the header declares it.
        unsafe {
            let create: unsafe extern "C" fn(*mut Handle, Handle, Handle, Handle) -> c_int =
                self.get("dnnl_memory_create")?;
            check(create(&mut memory, desc, self.engine, at), "a memory")?;
        }
        Ok(memory)
    }

    fn primitive(&self, desc: Handle) -> Result<Handle> {
        let mut primitive = null_mut();
        // SAFETY: type as the header declares it.
        unsafe {
            let create: unsafe extern "C" fn(*mut Handle, Handle) -> c_int =
                self.get("dnnl_primitive_create")?;
            check(create(&mut primitive, desc), "a primitive")?;
        }
        Ok(primitive)
    }
}

/// `dnnl_data_type_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bf16 = 2,
    F32 = 3,
    S32 = 4,
    S8 = 5,
}

/// One of the ways to a product; `true` where it went well.
type Way<'l> = Box<dyn FnMut(usize) -> c_int + 'l>;

/// A product made ready.
pub(crate) struct Multiply<'l> {
    way: Way<'l>,
    sets: usize,
    next: usize,
    c: *const u8,
    kind: Kind,
    count: usize,
    /// What the ways point to.
    _memory: Vec<Aligned<u8>>,
}

fn bytes_of(values: &[f32], kind: Kind) -> Vec<u8> {
    match kind {
        Kind::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Kind::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_bits().to_le_bytes()).collect(),
        _ => values.iter().map(|v| (v * 128.0).round() as i8 as u8).collect(),
    }
}

impl<'l> Multiply<'l> {
    pub(crate) fn new(library: &'l Library, case: &Value) -> Result<Self> {
        ensure!(case["op"] == "matmul", "has no attention");
        let (square, pack) = (case["form"] == "square", case["packed"] == true);
        let (m, n, k) = (size(case, "m")?, size(case, "n")?, size(case, "k")?);
        let (kind, out) = match case["dtype"].as_str().unwrap_or_default() {
            "f32" => (Kind::F32, Kind::F32),
            "bf16" => (Kind::Bf16, Kind::Bf16),
            "i8" => (Kind::S8, Kind::S32),
            dtype => bail!("has no product of {dtype}"),
        };
        let a = Aligned::of(&bytes_of(&random(0, m * k), kind));
        let plain = bytes_of(&random(1, n * k), kind);
        let mut c = Aligned::<u8>::new(4 * m * n);
        let strides = if square { (n, 1) } else { (1, k) };
        let descs = |weights| -> Result<_> {
            let mut product = null_mut();
            let (a, c) = (library.desc(m, k, kind, Some((k, 1)))?, library.desc(m, n, out, Some((n, 1)))?);
            // SAFETY: type as the header declares it.
            unsafe {
                let create: Product = library.get("dnnl_matmul_primitive_desc_create")?;
                let none = null_mut();
                check(create(&mut product, library.engine, a, weights, none, c, none), "this product")?;
            }
            Ok((a, c, product))
        };
        let plain_desc = library.desc(k, n, kind, Some(strides))?;
        let (a_desc, c_desc, product) =
            descs(if pack { library.desc(k, n, kind, None)? } else { plain_desc })?;
        // SAFETY: types as the header declares these functions.
        let (weights, bytes, execute) = unsafe {
            let query: unsafe extern "C" fn(Handle, c_int, c_int) -> Handle =
                library.get("dnnl_primitive_desc_query_md")?;
            let bytes: unsafe extern "C" fn(Handle) -> usize = library.get("dnnl_memory_desc_get_size")?;
            let weights = query(product, WEIGHTS_DESC, 0);
            (weights, bytes(weights), library.get::<Execute>("dnnl_primitive_execute")?)
        };
        let (product, stream) = (library.primitive(product)?, library.stream);
        let mut sets: Vec<Aligned<u8>> = Vec::new();
        for _ in 0..copies(case, bytes) {
            let mut set = Aligned::<u8>::new(bytes);
            if pack {
                let mut reorder = null_mut();
                let from = library.memory(plain_desc, plain.as_ptr() as Handle)?;
                let to = library.memory(weights, set.ptr_mut().cast())?;
                // SAFETY: as above; the memories are as large as what describes them says.
                unsafe {
                    let create: Reorder = library.get("dnnl_reorder_primitive_desc_create")?;
                    let (engine, none) = (library.engine, null_mut());
                    check(create(&mut reorder, plain_desc, engine, weights, engine, none), "packing")?;
                    let args = [Arg { what: SRC, memory: from }, Arg { what: DST, memory: to }];
                    check(execute(library.primitive(reorder)?, stream, 2, args.as_ptr()), "packing")?;
                }
            } else {
                set = Aligned::of(&plain);
            }
            sets.push(set);
        }
        let a_memory = library.memory(a_desc, a.ptr() as Handle)?;
        let c_memory = library.memory(c_desc, c.ptr_mut().cast())?;
        let weights: Vec<Handle> =
            sets.iter().map(|set| library.memory(weights, set.ptr() as Handle)).collect::<Result<_>>()?;
        let mut ways: Vec<Way<'l>> = vec![Box::new(move |at| {
            let args = [
                Arg { what: SRC, memory: a_memory },
                Arg { what: WEIGHTS, memory: weights[at] },
                Arg { what: DST, memory: c_memory },
            ];
            // SAFETY: as above; operands lie where they lay.
            unsafe { execute(product, stream, 3, args.as_ptr()) }
        })];
        let (letter, ldb) = if square { (b'N', n) } else { (b'T', k) };
        let (no, letter) = (b'N' as c_char, letter as c_char);
        let (pa, pc) = (a.ptr(), c.ptr_mut());
        let pb: Vec<*const u8> = sets.iter().map(Aligned::ptr).collect();
        let (mm, nn, kk, ldb) = (m as i64, n as i64, k as i64, ldb as i64);
        if !pack && kind == Kind::F32 {
            // SAFETY: type as the header declares it.
            let gemm: Sgemm = unsafe { library.get("dnnl_sgemm")? };
            ways.push(Box::new(move |at| {
                let (a, b, c) = (pa.cast(), pb[at].cast(), pc.cast());
                // SAFETY: sizes and strides are those of the vectors; C is nobody else's.
                unsafe { gemm(no, letter, mm, nn, kk, 1.0, a, kk, b, ldb, 0.0, c, nn) }
            }));
        } else if !pack && kind == Kind::S8 {
            // SAFETY: type as the header declares it.
            let gemm: GemmI8 = unsafe { library.get("dnnl_gemm_s8s8s32")? };
            ways.push(Box::new(move |at| {
                let (a, b, c, fixed) = (pa.cast(), pb[at].cast(), pc.cast(), b'F' as c_char);
                // SAFETY: as above.
                unsafe { gemm(no, letter, fixed, mm, nn, kk, 1.0, a, kk, 0, b, ldb, 0, 0.0, c, nn, &0) }
            }));
        }
        let count = sets.len();
        let (way, _) = ways
            .into_iter()
            .map(|mut way| fastest(&mut way).map(|time| (way, time)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .min_by_key(|(_, time)| *time)
            .context("no way")?;
        let at = c.ptr();
        sets.extend([a, c]);
        Ok(Multiply { way, sets: count, next: 0, c: at, kind: out, count: m * n, _memory: sets })
    }
}

fn fastest(way: &mut Way<'_>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        check(way(0), "this product")?;
        times.push(start.elapsed());
    }
    times.into_iter().min().context("no time")
}

impl Ready for Multiply<'_> {
    fn call(&mut self) -> Result<()> {
        check((self.way)(self.next), "this product")?;
        self.next = (self.next + 1) % self.sets;
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        let size = if self.kind == Kind::Bf16 { 2 } else { 4 };
        // SAFETY: the vector of C has room for so many elements, and lasts as long as `self`.
        let bytes = unsafe { std::slice::from_raw_parts(self.c, self.count * size) };
        let values: Vec<f32> = match self.kind {
            Kind::Bf16 => {
                let pairs = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                pairs.map(|bits| bf16::from_bits(bits).to_f32()).collect()
            }
            kind => bytes
                .chunks_exact(4)
                .map(|four| {
                    let bits = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                    if kind == Kind::F32 { f32::from_bits(bits) } else { bits as i32 as f32 }
                })
                .collect(),
        };
        Ok(ends(&values))
    }
}
