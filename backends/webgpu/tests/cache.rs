//! Pipeline caches on disk that hold what no driver wrote: devices are opened all the same, and results are right. Each is opened by a
//! process of its own, which is told the folder.

use perjoule_kernels::op::Add;
use perjoule_kernels::{Arg, DType, Device, Op, prepare, select};
use perjoule_webgpu::WebGpuDevice;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "PERJOULE_WEBGPU_CACHE";
const CHILD: &str = "PERJOULE_TEST_CACHE_CHILD";

#[test]
fn adds() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let Ok(device) = WebGpuDevice::open(0) else { return };
    let op = Op::from(Add::dense(1, 64, DType::F32));
    let add = prepare(&device, &op, select(&device, &op, &[]).unwrap(), None).unwrap();
    let [a, out] = [(); 2].map(|()| device.alloc(256).unwrap());
    let mut stream = device.stream().unwrap();
    stream.write(&a, &1.5f32.to_le_bytes().repeat(64)).unwrap();
    add.launch(&mut *stream, &mut [&a, &a, &out].map(Arg::Buf)).unwrap();
    assert_eq!(stream.read(&out).wait().unwrap(), 3f32.to_le_bytes().repeat(64));
}

fn child(folder: &Path) {
    let program = std::env::current_exe().unwrap();
    let run = Command::new(program).args(["--exact", "adds"]).env(FOLDER, folder).env(CHILD, "1").output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn poisoned_caches_do_no_harm() {
    let folder = std::env::temp_dir().join(format!("perjoule-webgpu-cache-{}", std::process::id()));
    child(&folder);
    let written = files(&folder);
    if written.is_empty() {
        return eprintln!("ignored: no adapter, or one without a cache");
    }
    let [file] = &written[..] else { panic!("{written:?}") };
    let whole = std::fs::read(file).unwrap();
    // a file that answers to its hash, as `src/cache.rs` writes it, with another content
    let sealed = |content: &[u8]| {
        let hash = content.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        [&whole[..16], &hash.to_le_bytes(), content].concat()
    };
    assert_eq!(sealed(&whole[24..]), whole);
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for poison in
        [&b""[..], b"nonsense", &damaged, &whole[..20], &sealed(b""), &sealed(&noise), &sealed(&noise[..9])]
    {
        std::fs::write(file, poison).unwrap();
        child(&folder);
        assert_eq!(files(&folder), written, "one file, and nothing left beside it");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
