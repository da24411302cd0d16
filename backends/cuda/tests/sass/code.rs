//! What the assembler says of a variant, and which instructions are in it.

use libtest_mimic::Failed;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Instructions that tell how a kernel works: tensor cores, copies past registers, what moves matrices, registers given away, atomics.
const TELLING: [&str; 22] = [
    "HGMMA",
    "QGMMA",
    "IGMMA",
    "HMMA",
    "QMMA",
    "IMMA",
    "UTCHMMA",
    "UTCQMMA",
    "UTCIMMA",
    "UTMALDG",
    "UTMASTG",
    "UTMAPF",
    "UBLKCP",
    "LDGSTS",
    "LDSM",
    "STSM",
    "USETMAXREG",
    "ATOMG",
    "ATOMS",
    "RED",
    "REDG",
    "ACQBULK",
];

/// NVIDIA's disassembler.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    nvdisasm: PathBuf,
}

impl Tools {
    pub(super) fn find(fetched: Option<&Path>) -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::env::var_os(perjoule_cuda::library::VARIABLE).unwrap_or_default();
        let folders = fetched.map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&own));
        let mut folders: Vec<PathBuf> = folders.map(|folder| folder.join("bin")).collect();
        folders.extend(std::env::split_paths(&path));
        folders.push("/usr/local/cuda/bin".into());
        let files = folders.into_iter().map(|folder| folder.join("nvdisasm"));
        let nvdisasm = files.into_iter().find(|file| file.is_file());
        nvdisasm.map(|nvdisasm| Tools { nvdisasm }).ok_or_else(|| "nvdisasm was not found".into())
    }

    pub(super) fn disassemble(&self, cubin: &[u8]) -> Result<String, Failed> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("{}-{count}.cubin", std::process::id()));
        let failed = |what: &str| Failed::from(format!("{}: {what}", self.nvdisasm.display()));
        std::fs::write(&file, cubin).map_err(|e| failed(&e.to_string()))?;
        let out = Command::new(&self.nvdisasm).arg(&file).output();
        let _ = std::fs::remove_file(&file);
        let out = out.map_err(|e| failed(&e.to_string()))?;
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
            false => Err(failed(&String::from_utf8_lossy(&out.stderr))),
        }
    }
}

/// What became of a variant: the most of any of its kernels.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Code {
    pub(super) registers: u32,
    /// Bytes of shared memory that are not dynamic.
    pub(super) shared: u32,
    /// Of [`TELLING`].
    pub(super) instructions: BTreeSet<&'static str>,
    stack: u32,
    spilled: u32,
    warnings: Vec<String>,
}

impl Code {
    /// Out of the log of `ptxas -v` and the disassembly.
    pub(super) fn of(log: &str, sass: &str) -> Self {
        let mut code = Code::default();
        for line in log.lines() {
            code.stack = code.stack.max(before(line, "bytes stack frame"));
            code.spilled =
                code.spilled.max(before(line, "bytes spill stores")).max(before(line, "bytes spill loads"));
            code.registers = code.registers.max(before(line, "registers"));
            code.shared = code.shared.max(before(line, "bytes smem"));
            // variants leave functions unused and loops without a turn
            let unused = line.contains("#177-D")
                || line.contains("#128-D")
                || line.contains("pilled to local memory")
                || line.contains("The warnings can");
            if line.contains("(C7") || line.contains("warning") && !unused {
                code.warnings.push(line.trim().into());
            }
        }
        let opcodes = sass.lines().filter_map(opcode);
        let telling = opcodes.filter_map(|opcode| TELLING.into_iter().find(|name| *name == opcode));
        code.instructions = telling.collect();
        code
    }

    /// What no kernel may have, but for so many bytes outside of registers.
    pub(super) fn faults(&self, spills: u32) -> Vec<String> {
        let mut list = self.warnings.clone();
        if self.spilled > spills {
            list.push(format!("{} bytes are spilled", self.spilled));
        }
        if self.stack > spills {
            list.push(format!("a stack frame of {} bytes", self.stack));
        }
        if self.registers == 0 {
            list.push("the assembler says nothing of its registers".into());
        }
        list
    }
}

/// The number before some words: 168 of `Used 168 registers`.
fn before(line: &str, words: &str) -> u32 {
    let Some((left, _)) = line.split_once(words) else { return 0 };
    left.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Of `/*0090*/ @P0 HGMMA.64x256x16.F32.BF16 R24, ...` it is HGMMA.
fn opcode(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let mut words = rest.split_whitespace();
    let first = words.next()?;
    let word = if first.starts_with('@') { words.next()? } else { first };
    word.trim_end_matches(';').split('.').next()
}

/// Tests of the reading, which `harness = false` does not find by itself.
pub(super) fn check() -> Result<(), Failed> {
    let log = "ptxas info    : Compiling entry function 'f' for 'sm_90a'\n\
               ptxas info    : Function properties for f\n\
               \x20   8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
               ptxas info    : Used 168 registers, used 2 barriers, 8 bytes cumulative stack size, 1024 bytes smem\n\
               ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized\n";
    let sass = "        /*0090*/              @!P0 HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x01 */\n\
                \x20       /*00a0*/                   LDSM.16.M88.4 R4, [R2] ;\n .L_x:\n";
    let code = Code::of(log, sass);
    let want = Code {
        registers: 168,
        shared: 1024,
        instructions: ["HGMMA", "LDSM"].into(),
        stack: 8,
        spilled: 12,
        warnings: vec![log.lines().last().unwrap_or_default().trim().into()],
    };
    if code != want {
        return Err(Failed::from(format!("{code:?} instead of {want:?}")));
    }
    match code.faults(0).len() {
        3 => Ok(()),
        other => Err(Failed::from(format!("{other} faults instead of 3"))),
    }
}
